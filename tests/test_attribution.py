"""Where a network looked."""

import numpy as np
import pytest
import torch

from vitcls.data.preprocess import spec_of_size
from vitcls.methods.networks import FAMILIES, LABELS, SIZE
from vitcls.models.adapters import LoRA
from vitcls.models.attribution import attributed, has_attention, relevance
from vitcls.models.classifier import ViTClassifier

LOOKING = ("vit", "deit", "beit", "dinov2")


def model_of(family, layers=None, **options):
    torch.manual_seed(0)
    image = spec_of_size(SIZE).record()
    architecture = {"model_type": family, **FAMILIES[family]}
    architecture |= {} if layers is None else {"num_hidden_layers": layers}
    model = ViTClassifier(architecture=architecture, labels=LABELS, image=image, **options)
    model.configure_model()
    return model.eval()


@pytest.mark.parametrize("family", FAMILIES)
def test_each_family_has_it_or_says_not(family):
    assert has_attention(model_of(family)) == (family in LOOKING)


@pytest.mark.parametrize("family", LOOKING)
def test_each_patch_has_a_share_and_the_network_stays_as_it_was(family):
    model = model_of(family)
    pixels = torch.randn(1, 3, SIZE, SIZE)
    before = model(pixels)
    found = relevance(model, pixels)
    assert found.shape == (4, 4)
    assert (found >= 0).all()
    assert found.std() > 0
    assert torch.equal(model(pixels), before)
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("half", [slice(None, 32), slice(32, None)], ids=["mean of patches", "class token"])
def test_of_a_head_on_the_class_token_and_the_patches_both_count(half):
    model = model_of("dinov2", layers=1)
    weight = model.network.classifier.weight
    assert weight.shape[1] == 64
    with torch.no_grad():
        weight[:, half] = 0
    assert relevance(model, torch.randn(1, 3, SIZE, SIZE)).max() > 0


def test_frozen_weights_and_inference_are_no_obstacle(tiny_vit):
    image = np.random.default_rng(0).integers(0, 256, (50, 40, 3), dtype=np.uint8)
    for options in ({"train": "head"}, {"adapter": LoRA(r=2)}):
        model = ViTClassifier(str(tiny_vit), labels=LABELS, **options)
        model.configure_model()
        with torch.no_grad():
            found = attributed(model.eval(), image)
        assert found.shape == (32, 32, 3)
        assert found.dtype == np.uint8


def test_patches_that_are_alike_have_the_same_share_and_the_other_one_another():
    model = model_of("vit")
    pixels = torch.zeros(1, 3, SIZE, SIZE)
    pixels[..., 8:16, 8:16] = torch.randn(3, 8, 8, generator=torch.Generator().manual_seed(1)) * 3  # patch 5 of 4 x 4
    with torch.no_grad():
        model.network.vit.embeddings.position_embeddings.zero_()
    found = relevance(model, pixels).flatten()
    others = found[torch.arange(16) != 5]
    torch.testing.assert_close(others, others.mean().expand(15))
    assert not torch.isclose(found[5], others[0], rtol=0.05)
