"""Less memory for the same training: recomputed activations, a frozen base in bfloat16, compilation."""

import pytest
import torch
import yaml
from lightning.pytorch import Callback

from tests.test_averaging import load
from tests.test_layer_rates import NETWORKS
from vitcls.errors import UserError
from vitcls.models.adapters import LoRA, add_lora
from vitcls.models.classifier import ViTClassifier
from vitcls.models.memory import compile_network, recompute_activations
from vitcls.models.network import head_names

KINDS = {"all": [], "lora": ["--model.adapter.r=2", "--model.adapter.dropout=0.1"]}
SUPPORTING = [name for name in NETWORKS if name not in ("convnext", "resnet")]


class CountForwards(Callback):
    """Prints how often a block's MLP was called in a training step."""

    def on_train_batch_start(self, trainer, pl_module, *args) -> None:
        self.count = 0
        layer = next(m for n, m in pl_module.network.named_modules() if n.endswith("layers.0.mlp"))
        self.hook = layer.register_forward_pre_hook(self._counted)  # the second is cut short

    def _counted(self, *args) -> None:
        self.count += 1

    def on_train_batch_end(self, *args) -> None:
        self.hook.remove()
        print("forwards", self.count)


def counting(folder) -> list[str]:
    file = folder / "count.yaml"
    file.write_text(yaml.safe_dump({"trainer": {"callbacks+": [{"class_path": "tests.test_memory.CountForwards"}]}}))
    return ["--config", file]


def forwards(out: str) -> set[str]:
    return {line for line in out.splitlines() if line.startswith("forwards")}


@pytest.mark.parametrize("kind", KINDS)
def test_activations_are_recomputed_and_the_training_is_the_same(vitcls, fit_words, tmp_path, kind):
    words = [*fit_words, *KINDS[kind], *counting(tmp_path)]
    for name, added in {"plain": [], "recomputed": ["--model.gradient_checkpointing=true"]}.items():
        status, out, err = vitcls(*words, f"--run_name={name}", *added)
        assert status == 0, err
        assert forwards(out) == {"forwards 1" if name == "plain" else "forwards 2"}
    plain, recomputed = (load(tmp_path / "runs" / n / "last.ckpt")["state_dict"] for n in ("plain", "recomputed"))
    assert plain.keys() == recomputed.keys()
    for name in plain:
        torch.testing.assert_close(plain[name], recomputed[name], rtol=0, atol=1e-6)


@pytest.mark.parametrize("adapted", [False, True])
@pytest.mark.parametrize("name", SUPPORTING)
def test_gradients_of_every_family_are_the_plain_ones(name, adapted):
    found = {}
    for recomputed in (False, True):
        torch.manual_seed(0)
        network = NETWORKS[name]().train()
        if adapted:
            network = add_lora(network, LoRA(r=2, dropout=0, targets=["all-linear"]), head_names(network))
        if recomputed:
            recompute_activations(network)
        torch.manual_seed(1)
        network(pixel_values=torch.randn(2, 3, 32, 32)).logits.square().sum().backward()
        found[recomputed] = {n: p.grad for n, p in network.named_parameters() if p.grad is not None}
    assert found[True].keys() == found[False].keys()
    assert not adapted or any("lora_A" in n for n in found[True])
    for parameter, gradient in found[False].items():
        torch.testing.assert_close(gradient, found[True][parameter], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["convnext", "resnet"])
def test_a_family_that_cannot_recompute_is_refused(name):
    with pytest.raises(UserError, match=f"is not for a network of type '{name}'"):
        recompute_activations(NETWORKS[name]())


class Dtypes(Callback):
    """Prints the dtypes of what trains and of what does not."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        kinds = {(p.requires_grad, str(p.dtype)) for p in pl_module.network.parameters()}
        print("kinds", sorted(kinds))


@pytest.mark.parametrize(
    ("kind", "precision"),
    [("adapter.r=2", "bf16-mixed"), ("adapter.method=dora", "32-true"), ("train=head", "32-true")],
)
def test_a_base_in_bfloat16_trains_float32(vitcls, fit_words, tmp_path, kind, precision):
    file = tmp_path / "dtypes.yaml"
    file.write_text(yaml.safe_dump({"trainer": {"callbacks+": [{"class_path": "tests.test_memory.Dtypes"}]}}))
    words = [*fit_words, f"--model.{kind}", "--model.lr=0.01", f"--trainer.precision={precision}"]
    assert vitcls(*words, "--run_name=plain")[0] == 0
    status, out, err = vitcls(*words, "--run_name=low", "--model.base_precision=bfloat16", "--config", file)
    assert status == 0, err
    assert "kinds [(False, 'torch.bfloat16'), (True, 'torch.float32')]" in out
    plain, low = (load(tmp_path / "runs" / name / "best.ckpt") for name in ("plain", "low"))
    assert plain["vitcls"]["frozen_digest"] == low["vitcls"]["frozen_digest"]
    assert {v.dtype for v in low["state_dict"].values()} == {torch.float32}
    assert low["vitcls"]["metrics"]["val/loss"] == pytest.approx(plain["vitcls"]["metrics"]["val/loss"], abs=0.05)
    status, out, err = vitcls("validate", "--ckpt_path", tmp_path / "runs" / "low", "--trainer.accelerator=cpu")
    assert status == 0, err
    assert repr(low["vitcls"]["metrics"]["val/loss"])[:7] in out  # again in bfloat16
    model = ViTClassifier.load_from_checkpoint(tmp_path / "runs" / "low" / "best.ckpt", weights_only=True)
    assert {p.dtype for p in model.network.parameters()} == {torch.float32}  # what model/ is made of


def test_compiled_training_is_the_same_and_is_kept_under_the_same_names(vitcls, fit_words, tmp_path):
    torch._dynamo.reset()
    words = [*fit_words, "--model.adapter.r=2", "--model.adapter.dropout=0", "--trainer.max_epochs=1"]
    assert vitcls(*words, "--run_name=plain")[0] == 0
    compiles = torch._dynamo.utils.counters["frames"]
    compiles.clear()
    status, _, err = vitcls(*words, "--run_name=compiled", "--model.compile=eager")
    assert status == 0, err
    assert compiles["ok"] > 0
    plain, compiled = (load(tmp_path / "runs" / name / "last.ckpt")["state_dict"] for name in ("plain", "compiled"))
    assert plain.keys() == compiled.keys()
    for name in plain:
        torch.testing.assert_close(plain[name], compiled[name], rtol=0, atol=1e-4)


def test_a_last_short_batch_is_translated_once():
    torch._dynamo.reset()
    network = NETWORKS["vit"]().train()
    compile_network(network, "eager")
    graphs = torch._dynamo.utils.counters["stats"]
    made = []
    for size in (4, 3, 4, 3, 4, 3):
        network(pixel_values=torch.zeros(size, 3, 32, 32))
        made.append(graphs["unique_graphs"])
    assert made[0] < made[1] == made[-1]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--model.gradient_checkpointing=true", "--model.train=head"], "saves nothing with --model.train head"),
        (["--model.base_precision=bfloat16"], "is for weights that are frozen as a whole"),
        (["--model.base_precision=bfloat16", "--model.adapter.method=vera"], "frozen as a whole"),
        (["--model.base_precision=bfloat16", "--model.adapter.bias=all"], "--model.adapter.bias all trains biases of"),
        (
            ["--model.base_precision=bfloat16", "--model.adapter.r=2", "--trainer.precision=bf16-true"],
            "--trainer.precision bf16-true is of all weights",
        ),
        (["--model.compile=inductr"], "--model.compile is 'inductr'; it must be true, false or one of"),
    ],
)
def test_what_cannot_be_is_a_sentence(refuses, fit_words, words, told):
    assert told in refuses(*fit_words, *words)


def test_no_compiler_is_a_sentence(refuses, fit_words, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    assert "needs a C++ compiler" in refuses(*fit_words, "--model.compile=true")


HALF = "--data.batch_size 8 --trainer.accumulate_grad_batches"
RECOMPUTED = "--model.gradient_checkpointing true"
MIXED = "--trainer.precision bf16-mixed (16-mixed on GPUs before Ampere)"


class FullMemory(Callback):
    """A network that runs out of memory in its second training step, or in its first validation."""

    def __init__(self, stage: str) -> None:
        self.stage = stage

    def on_fit_start(self, trainer, pl_module) -> None:
        def full(module, args, words) -> None:
            at_step = trainer.training and trainer.global_step == (1 if self.stage == "train" else -1)
            if at_step or (trainer.validating and self.stage == "val"):
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

        pl_module.network.register_forward_pre_hook(full, with_kwargs=True)


def full_memory(folder, stage: str) -> list[str]:
    callback = {"class_path": "tests.test_memory.FullMemory", "init_args": {"stage": stage}}
    (folder / "full.yaml").write_text(yaml.safe_dump({"trainer": {"callbacks+": [callback]}}))
    return ["--config", folder / "full.yaml"]


@pytest.mark.parametrize(
    ("words", "advice"),
    [
        (
            [],
            f"{HALF} 2 (the same images in a step), {RECOMPUTED}, {MIXED}",
        ),
        (
            ["--data.batch_size=1", "--model.gradient_checkpointing=true", "--trainer.precision=bf16-mixed"],
            "--model.adapter.r 16",
        ),
        (
            ["--model.adapter.r=2", "--trainer.precision=bf16-mixed", "--trainer.accumulate_grad_batches=2"],
            f"{HALF} 4 (the same images in a step), {RECOMPUTED}, --model.base_precision bfloat16",
        ),
        (
            ["--model.last_blocks=1", "--data.batch_size=1", "--model.gradient_checkpointing=true"],
            MIXED,
        ),
        (
            ["--model.train=head", "--data.batch_size=1", "--model.base_precision=bfloat16"],
            MIXED,
        ),
    ],
)
def test_memory_that_runs_out_is_told_with_what_would_help(refuses, fit_words, tmp_path, words, advice):
    told = refuses(*fit_words, "--trainer.max_steps=4", *words, *full_memory(tmp_path, "train"))
    assert told.endswith(f"What helps, the first first: {advice}.")
    assert "The memory was not enough for a training step" in told
    assert "Tried to allocate 2.00 GiB" in told


def test_a_validation_without_memory_wants_smaller_batches_of_its_own(refuses, fit_words, tmp_path):
    told = refuses(*fit_words, "--trainer.num_sanity_val_steps=0", *full_memory(tmp_path, "val"))
    assert "not enough for a batch of 16 images that is evaluated" in told
    assert told.endswith(f"--data.eval_batch_size 8, {MIXED}.")
