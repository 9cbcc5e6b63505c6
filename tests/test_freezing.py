"""The head alone in the first epochs, then everything."""

import pytest
import torch
import yaml

from tests.test_averaging import load, trail

PLAIN = ["--data.augment=none", "--model.schedule=constant", "--model.warmup_fraction=0", "--model.lr=0.01"]
PLAIN += ["--model.freeze_epochs=2", "--trainer.max_epochs=4", "--trainer.gradient_clip_val=0.1"]
KINDS = {"all": [], "lora": ["--model.adapter.r=2", "--model.adapter.dropout=0"]}


def changed(before, after) -> set[str]:
    return {name for name in before if not torch.equal(before[name], after[name])}


@pytest.mark.parametrize("kind", KINDS)
def test_only_the_head_changes_before_the_epoch_and_all_after_it(vitcls, fit_words, tmp_path, kind):
    words = [*fit_words, *PLAIN, *KINDS[kind], *trail(tmp_path / "trail")]
    assert vitcls(*words)[0] == 0
    steps = [load(tmp_path / "trail" / f"step{step}.pt") for step in range(1, 17)]  # 4 in an epoch
    head = {name for name in steps[0] if "classifier" in name and "original_module" not in name}
    assert changed(steps[0], steps[7]) == head
    assert changed(steps[7], steps[8]) > head
    if kind == "all":
        assert len(changed(steps[7], steps[8])) == len(steps[0])


def test_frozen_epochs_are_those_of_training_the_head_only(vitcls, fit_words, tmp_path):
    words = [*fit_words, *PLAIN, "--trainer.max_epochs=2"]
    assert vitcls(*words, "--run_name=frozen")[0] == 0
    assert vitcls(*words, "--run_name=head", "--model.train=head", "--model.freeze_epochs=0")[0] == 0
    frozen, head = (load(tmp_path / "runs" / name / "last.ckpt")["state_dict"] for name in ("frozen", "head"))
    assert len(head) == 2
    for name, weights in head.items():
        torch.testing.assert_close(frozen[name], weights, rtol=0, atol=1e-6)


@pytest.mark.parametrize("step", [6, 10])
@pytest.mark.parametrize("kind", KINDS)
def test_a_resume_before_or_after_the_epoch_is_bit_for_bit(vitcls, fit_words, tmp_path, keeps_sigint, kind, step):
    words = [*fit_words, *PLAIN, *KINDS[kind]]
    interrupt = {"class_path": "tests.interrupting.InterruptAfter", "init_args": {"step": step}}
    (tmp_path / "interrupt.yaml").write_text(yaml.safe_dump({"trainer": {"callbacks": [interrupt]}}))
    assert vitcls(*words, "--run_name=whole")[0] == 0
    assert vitcls(*words, "--run_name=parts", "--config", tmp_path / "interrupt.yaml")[0] == 130
    assert vitcls("fit", "--ckpt_path", tmp_path / "runs" / "parts", "--trainer.callbacks=null")[0] == 0
    whole, parts = (load(tmp_path / "runs" / name / "last.ckpt") for name in ("whole", "parts"))
    assert whole["global_step"] == parts["global_step"] == 16
    torch.testing.assert_close(whole["state_dict"], parts["state_dict"], rtol=0, atol=0)


def test_statistics_of_batch_norms_wait_too(vitcls, fit_words, tmp_path, keeps_sigint):
    resnet = {"model_type": "resnet", "embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1]}
    image = {"size": 32, "resize_to": 32, "resize": "squash", "interpolation": "bilinear"}
    image |= {"mean": [0.5] * 3, "std": [0.5] * 3}
    file = tmp_path / "resnet.yaml"
    file.write_text(yaml.safe_dump({"model": {"checkpoint": None, "architecture": resnet, "image": image}}))
    words = [word for word in fit_words if "model.checkpoint" not in word]
    status, _, err = vitcls(*words, *PLAIN, "--config", file, *trail(tmp_path / "trail"))
    assert status == 0, err
    first, last, next_one = (load(tmp_path / "trail" / f"step{step}.pt") for step in (1, 8, 9))
    assert changed(first, last) == {"network.classifier.1.weight", "network.classifier.1.bias"}
    assert any(name.endswith("running_mean") for name in changed(last, next_one))
    interrupt = {"class_path": "tests.interrupting.InterruptAfter", "init_args": {"step": 6}}  # inside an epoch
    (tmp_path / "interrupt.yaml").write_text(yaml.safe_dump({"trainer": {"callbacks": [interrupt]}}))
    words = [*words, *PLAIN, "--config", file, "--run_name=parts"]
    assert vitcls(*words, "--config", tmp_path / "interrupt.yaml")[0] == 130
    words = ["fit", "--ckpt_path", tmp_path / "runs" / "parts", "--trainer.callbacks=null"]
    assert vitcls(*words, *trail(tmp_path / "resumed"))[0] == 0
    resumed = load(tmp_path / "resumed" / "step8.pt")
    assert changed(first, resumed) == {"network.classifier.1.weight", "network.classifier.1.bias"}


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--model.freeze_epochs=-1"], "--model.freeze_epochs is -1; it must be at least 0"),
        (["--model.freeze_epochs=1", "--model.train=head"], "set --model.freeze_epochs to 0"),
    ],
)
def test_freezing_that_cannot_be_is_refused(refuses, fit_words, words, told):
    assert told in refuses(*fit_words, *words)
