"""The last blocks and the head train, the others stay."""

import pytest
import torch

from tests.test_averaging import load
from tests.test_layer_rates import NETWORKS
from vitcls.errors import UserError
from vitcls.models.layer_rates import last_blocks_of

# Of networks with three blocks, what a parameter of the last one and of what follows it is called.
LAST = {
    "vit": ("vit.layers.2.", "vit.layernorm."),
    "deit": ("deit.layers.2.", "deit.layernorm."),
    "beit": ("beit.layers.2.", "beit.pooler."),
    "dinov2": ("dinov2.encoder.layer.2.", "dinov2.layernorm."),
    "swin": ("swin.encoder.layers.1.blocks.1.", "swin.layernorm."),
    "convnext": ("convnext.encoder.stages.1.layers.1.", "convnext.layernorm."),
    "resnet": ("resnet.encoder.stages.1.layers.1.",),
}


@pytest.mark.parametrize("family", LAST)
def test_the_last_block_is_the_same_in_every_family(family):
    network = NETWORKS[family]()
    trained = last_blocks_of(network, 1)
    allowed = (*LAST[family], "classifier.")
    assert all(name.startswith(allowed) for name in trained)
    for prefix in allowed:
        assert {n for n, _ in network.named_parameters() if n.startswith(prefix)} <= set(trained)
        assert any(name.startswith(prefix) for name in trained)


def test_all_blocks_are_all_but_the_embeddings():
    network = NETWORKS["vit"]()
    rest = {name for name, _ in network.named_parameters()} - set(last_blocks_of(network, 3))
    assert rest
    assert all(name.startswith("vit.embeddings.") for name in rest)


def test_there_are_no_more_blocks_than_there_are():
    with pytest.raises(UserError, match="last_blocks is 4, but the network has 3 blocks"):
        last_blocks_of(NETWORKS["vit"](), 4)


def test_a_fit_keeps_and_changes_the_last_block_and_the_head_alone(vitcls, fit_words, tmp_path):
    words = [*fit_words, "--model.last_blocks=1"]
    status, out, err = vitcls(*words)
    assert status == 0, err
    run = tmp_path / "runs" / "run"
    kept = load(run / "best.ckpt")["state_dict"]
    assert {name.split(".")[1] for name in kept} == {"vit", "classifier"}
    assert {".".join(name.split(".")[2:4]) for name in kept if ".vit." in name} == {
        "layers.1",
        "layernorm.weight",
        "layernorm.bias",
    }
    status, out, _ = vitcls("validate", "--ckpt_path", run, "--trainer.enable_progress_bar=false")
    assert status == 0
    assert str(load(run / "best.ckpt")["vitcls"]["metrics"]["val/loss"])[:8] in out
    assert vitcls("fit", "--ckpt_path", run, "--trainer.max_epochs=3")[0] == 0
    again = load(run / "last.ckpt")["state_dict"]
    assert again.keys() == kept.keys()
    assert any(not torch.equal(again[name], kept[name]) for name in kept)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--model.last_blocks=0"], "--model.last_blocks is 0; it must be at least 1"),
        (["--model.last_blocks=1", "--model.train=head"], "which --model.train head excludes"),
        (["--model.last_blocks=1", "--model.adapter.r=2"], "which --model.adapter excludes"),
    ],
)
def test_blocks_that_cannot_be_chosen_are_refused(refuses, fit_words, words, told):
    assert told in refuses(*fit_words, *words)
