"""AdaLoRA under Lightning is AdaLoRA as in peft's own loop."""

import pytest
import torch
from lightning.pytorch import Trainer
from safetensors.torch import load_file
from torch.nn import functional as F  # noqa: N812 - the field's own name for it
from transformers import ViTImageProcessor

from vitcls import LoRA, ViTClassifier
from vitcls.errors import UserError
from vitcls.methods.networks import SIZE, network_of
from vitcls.methods.trial import Noise, _merges
from vitcls.models.adapters import add_lora
from vitcls.models.adaptive_rank import adaptive, penalty, plan_ranks, share_out, state_of
from vitcls.models.folder import TOLERANCE, reload_difference, write_model_folder
from vitcls.models.network import head_names

ADALORA = {"method": "adalora", "r": 4, "alpha": 8, "dropout": 0.0, "targets": ["attention"]}
PIXELS = torch.randn(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(3))
QUIET = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}


@pytest.fixture
def checkpoint(tmp_path):
    network_of("vit").save_pretrained(tmp_path / "network")
    ViTImageProcessor(size={"height": SIZE, "width": SIZE}).save_pretrained(tmp_path / "network")
    return tmp_path / "network"


def trained(checkpoint, epochs, lr=1e-2, **words):
    torch.manual_seed(1)
    arguments = {"adapter": LoRA(**ADALORA), "lr": lr, "weight_decay": 0.0, "warmup_steps": 0, "schedule": "constant"}
    model = ViTClassifier(str(checkpoint), **arguments)
    Trainer(accelerator="cpu", max_epochs=epochs, limit_val_batches=0, **words, **QUIET).fit(model, Noise())
    return model


def adapted_vit():
    network = network_of("vit")
    adapted = add_lora(network, LoRA(**ADALORA), head_names(network))
    torch.manual_seed(5)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data.normal_(std=0.3)
    return adapted


def test_the_penalty_is_that_of_peft():
    adapted = adapted_vit().eval()
    labels = torch.tensor([0, 1])
    with_labels = adaptive(adapted)(pixel_values=PIXELS, labels=labels)  # PeftModel's own forward goes past this one
    plain = F.cross_entropy(with_labels.logits, labels)
    torch.testing.assert_close(plain + penalty(adapted), with_labels.loss)
    assert penalty(adapted) > 0.1
    assert penalty(network_of("vit")) == 0


@pytest.mark.parametrize("accumulated", [1, 2])
def test_a_training_is_that_of_pefts_own_loop(accumulated, checkpoint):
    model = trained(checkpoint, epochs=6 * accumulated // 2, accumulate_grad_batches=accumulated)
    torch.manual_seed(1)
    reference = ViTClassifier(str(checkpoint), adapter=LoRA(**ADALORA), labels=["a", "b"])
    reference.configure_model()
    network, steps = reference.network.train(), 6
    plan_ranks(network, steps)
    optimizer = torch.optim.AdamW([p for p in network.parameters() if p.requires_grad], lr=1e-2, weight_decay=0.0)
    batches = list(Noise().train_dataloader())
    for step in range(steps):
        for batch in batches if accumulated == 2 else [batches[step % 2]]:
            answer = adaptive(network)(pixel_values=batch["pixel_values"], labels=batch["labels"])
            (answer.loss / accumulated).backward()
        optimizer.step()
        adaptive(network).update_and_allocate(step)
        optimizer.zero_grad()
    theirs = dict(network.named_parameters())
    for name, ours in model.network.named_parameters():
        torch.testing.assert_close(ours, theirs[name], rtol=1e-4, atol=1e-5)
    assert state_of(model.network)["rank_pattern"] == state_of(network)["rank_pattern"]


def test_ranks_end_at_their_mean_and_are_exported_and_merged(checkpoint, tmp_path):
    model = trained(checkpoint, epochs=5)
    values = [p for name, p in model.network.named_parameters() if ".lora_E." in name]
    ranks = [int((value != 0).sum()) for value in values]
    assert sum(ranks) == 4 * len(values)
    assert {len(value) for value in values} == {6}
    assert len(set(ranks)) > 1
    write_model_folder(model, tmp_path / "model")
    assert reload_difference(model, tmp_path / "model", PIXELS) <= TOLERANCE
    assert _merges(model, PIXELS) == ""
    kept = load_file(tmp_path / "model" / "adapter_model.safetensors")
    assert sorted(len(tensor) for name, tensor in kept.items() if name.endswith("lora_E")) == sorted(ranks)
    again = ViTClassifier(str(tmp_path / "model"))
    again.configure_model()
    with torch.inference_mode():
        assert (again.eval()(PIXELS) - model.eval()(PIXELS)).abs().max() <= TOLERANCE


@pytest.mark.parametrize("epochs", [1, 3, 8])
def test_a_training_that_is_made_longer_goes_on(epochs, checkpoint, tmp_path):
    first = trained(checkpoint, epochs=4)
    first.trainer.save_checkpoint(tmp_path / "a.ckpt", weights_only=False)
    content = torch.load(tmp_path / "a.ckpt", weights_only=True)
    assert content["vitcls"]["ranks"]["total_step"] == 8
    model = ViTClassifier(str(checkpoint), adapter=LoRA(**ADALORA), warmup_steps=0)
    trainer = Trainer(accelerator="cpu", max_epochs=4 + epochs, limit_val_batches=0, **QUIET)
    trainer.fit(model, Noise(), ckpt_path=tmp_path / "a.ckpt", weights_only=True)
    assert state_of(model.network)["total_step"] == 2 * (4 + epochs)
    write_model_folder(model, tmp_path / "model")
    assert reload_difference(model, tmp_path / "model", PIXELS) <= TOLERANCE


def test_weights_that_are_no_longer_masked_are_exported_too(checkpoint, tmp_path):
    """As those of an average, which holds more singular values than the last step had."""
    model = trained(checkpoint, epochs=3)
    for name, parameter in model.network.named_parameters():
        if ".lora_E." in name:
            parameter.data.fill_(0.1)
    write_model_folder(model, tmp_path / "model")
    assert reload_difference(model, tmp_path / "model", PIXELS) <= TOLERANCE


@pytest.mark.parametrize(
    ("steps", "plan"), [(1, (0, 0)), (2, (0, 1)), (3, (0, 1)), (10, (2, 4)), (100, (15, 45)), (1000, (150, 450))]
)
def test_the_steps_are_divided_about_as_the_authors_do(steps, plan):
    adapted = adapted_vit()
    plan_ranks(adapted, steps)
    config = adapted.peft_config["default"]
    assert (config.total_step, config.tinit, config.tfinal) == (steps, *plan)


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_a_very_short_training_is_one_too(steps, checkpoint, tmp_path):
    model = trained(checkpoint, epochs=2, max_steps=steps)
    write_model_folder(model, tmp_path / "model")
    assert reload_difference(model, tmp_path / "model", PIXELS) <= TOLERANCE


def test_gradients_that_are_not_finite_weigh_nothing():
    adapted = adapted_vit()
    plan_ranks(adapted, 10)
    (adapted(pixel_values=PIXELS).logits.sum()).backward()
    share_out(adapted, 0)
    before = {name: t.clone() for name, t in state_of(adapted)["exp_avg_ipt"].items()}
    next(p for name, p in adapted.named_parameters() if ".lora_A." in name).grad[0, 0] = float("inf")
    share_out(adapted, 1)
    after = state_of(adapted)["exp_avg_ipt"]
    assert before
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_frozen_first_epochs_are_refused(checkpoint):
    with pytest.raises(UserError, match=r"adalora shares out the ranks.*freeze_epochs 2"):
        ViTClassifier(str(checkpoint), adapter=LoRA(**ADALORA), freeze_epochs=2)
