"""Optimisers by class path, through a fit: they learn, at the model's rate and decay, also after a resume."""

import pytest
import torch
import yaml

from tests.test_averaging import load


class Lion(torch.optim.Optimizer):
    """Chen et al. 2023 (arXiv:2302.06675, algorithm 2): of no library that is installed here."""

    def __init__(self, params, lr=1e-4, betas=(0.9, 0.99), weight_decay=0.0) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure=None):
        loss = torch.enable_grad()(closure)()
        for group in self.param_groups:
            first, second = group["betas"]
            for p in (p for p in group["params"] if p.grad is not None):
                kept = self.state[p].setdefault("exp_avg", torch.zeros_like(p))
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_((first * kept + (1 - first) * p.grad).sign(), alpha=-group["lr"])
                kept.lerp_(p.grad, 1 - second)
        return loss


OPTIMISERS = {
    "torch.optim.SGD": ({"momentum": 0.9, "nesterov": True}, 0.05),
    "torch.optim.Adafactor": ({}, 0.03),
    "transformers.Adafactor": ({"relative_step": False, "scale_parameter": False}, 3e-3),
    "tests.test_optimisers.Lion": ({}, 1e-3),
    "torch.optim.AdamW": ({"fused": True}, 3e-3),
}


def optimiser(folder, name: str, arguments: dict) -> list[str]:
    file = folder / "optimiser.yaml"
    file.write_text(yaml.safe_dump({"model": {"optimizer": {"class_path": name, "init_args": arguments}}}))
    return ["--config", file]


@pytest.mark.parametrize("name", OPTIMISERS)
def test_an_optimiser_learns_at_the_models_rate_and_decay(vitcls, fit_words, tmp_path, name):
    arguments, lr = OPTIMISERS[name]
    words = [*optimiser(tmp_path, name, arguments), f"--model.lr={lr}", "--model.weight_decay=0.02"]
    words += ["--trainer.max_epochs=5", "--model.schedule=constant"]
    status, _, err = vitcls(*fit_words, *words)
    assert status == 0, err
    run = tmp_path / "runs" / "run"
    content = load(run / "last.ckpt")
    assert content["vitcls"]["metrics"]["train/loss"] < 0.6  # 1.1 in the beginning
    groups = content["optimizer_states"][0]["param_groups"]
    assert [(g["initial_lr"], g["weight_decay"]) for g in groups] == [(lr, 0.02), (lr, 0.0)]
    status, _, err = vitcls("fit", "--ckpt_path", run, "--trainer.max_epochs=6", "--model.lr", lr / 2)
    assert status == 0, err
    resumed = load(run / "last.ckpt")["optimizer_states"][0]
    assert [g["lr"] for g in resumed["param_groups"]] == [lr / 2] * 2
    assert len(resumed["state"]) == sum(len(g["params"]) for g in groups)


@pytest.mark.parametrize(
    ("name", "arguments", "words", "told"),
    [
        ("transformers.Adafactor", {}, [], "makes learning rates of its own (relative_step)"),
        ("torch.optim.Muon", {}, [], "--model.optimizer cannot step this network: Muon only supports 2D"),
        ("torch.optim.LBFGS", {}, [], "--model.optimizer cannot step this network: LBFGS doesn't support"),
        (
            "torch.optim.AdamW",
            {"fused": True},
            ["--trainer.gradient_clip_val=1", "--trainer.precision=bf16-mixed"],
            "--trainer.gradient_clip_val 1 cannot be had with fused: true",
        ),
    ],
)
def test_what_would_do_nothing_or_fail_is_a_sentence(refuses, fit_words, tmp_path, name, arguments, words, told):
    assert told in refuses(*fit_words, *optimiser(tmp_path, name, arguments), *words)


def test_fused_gradients_are_clipped_in_float32(vitcls, fit_words, tmp_path):
    words = optimiser(tmp_path, "torch.optim.AdamW", {"fused": True})
    assert vitcls(*fit_words, *words, "--trainer.gradient_clip_val=1", "--trainer.max_epochs=1")[0] == 0


def test_a_resume_keeps_the_optimiser_and_takes_its_numbers_from_the_words(vitcls, refuses, fit_words, tmp_path):
    words = [*fit_words, "--resume=true"]
    assert vitcls(*words, "--trainer.max_epochs=1")[0] == 0
    run = tmp_path / "runs" / "run"
    before = (run / "config.yaml").read_text()
    told = refuses(*words, "--model.optimizer=torch.optim.SGD", "--model.optimizer.momentum=0.9")
    assert "stepped with torch.optim.adamw.AdamW, and this one would with torch.optim.sgd.SGD" in told
    assert (run / "config.yaml").read_text() == before
    status, _, err = vitcls(*words, "--model.optimizer=AdamW", "--model.optimizer.betas=[0.8, 0.9]")
    assert status == 0, err
    saved = load(run / "last.ckpt")["optimizer_states"][0]["param_groups"]
    assert {tuple(group["betas"]) for group in saved} == {(0.8, 0.9)}
