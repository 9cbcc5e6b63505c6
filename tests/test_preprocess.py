from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    AutoImageProcessor,
    BeitImageProcessor,
    BitImageProcessor,
    ConvNextImageProcessor,
    DeiTImageProcessor,
    ViTImageProcessor,
)

from vitcls.data.preprocess import ImageSpec, processor_of_spec, spec_of_checkpoint, spec_of_size
from vitcls.errors import UserError

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
GEOMETRIES = {
    "squash": {"resize": "squash", "resize_to": 32},
    "squash, then crop": {"resize": "squash", "resize_to": 37},
    "crop": {"resize": "crop", "resize_to": 37},
    "crop to the resized side": {"resize": "crop", "resize_to": 32},
    "crop with a border": {"resize": "crop", "resize_to": 28},
    "letterbox": {"resize": "letterbox", "resize_to": 32},
}
INTERPOLATIONS = ("nearest", "bilinear", "bicubic")
SHAPES = [(48, 96), (92, 40), (95, 40), (64, 64), (10, 13), (10, 14), (47, 60), (33, 32), (1, 24), (24, 1), (1, 1)]


def drawn(height: int, width: int) -> torch.Tensor:
    """Noise, so that a shift by one pixel shows: (3, H, W) uint8."""
    random = np.random.default_rng(height * 1000 + width)
    return torch.from_numpy(random.integers(0, 256, (3, height, width), dtype=np.uint8))


def by_processor(processor: Any, image: torch.Tensor) -> torch.Tensor:
    return processor(image, return_tensors="pt", input_data_format="channels_first")["pixel_values"]


def by_spec(spec: ImageSpec, image: torch.Tensor) -> torch.Tensor:
    return spec.normalise(spec.eval_transform(image)[None])


@pytest.fixture
def spec_of(tmp_path):
    """The spec that is read from a processor's file."""

    def read(processor: Any) -> ImageSpec:
        processor.save_pretrained(tmp_path)
        return spec_of_checkpoint(str(tmp_path))

    return read


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_the_processor_written_for_a_spec_gives_the_specs_pixels_bit_for_bit(geometry, interpolation, tmp_path):
    spec = ImageSpec(size=32, **GEOMETRIES[geometry], interpolation=interpolation, **IMAGENET)
    processor_of_spec(spec).save_pretrained(tmp_path)
    processor = AutoImageProcessor.from_pretrained(tmp_path)
    for shape in SHAPES:
        image = drawn(*shape)
        ours, theirs = by_spec(spec, image), by_processor(processor, image)
        assert ours.shape == theirs.shape == (1, 3, 32, 32)
        assert (ours - theirs).abs().max() == 0, shape


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic"])
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_a_spec_survives_being_written_and_read(geometry, interpolation, spec_of):
    spec = ImageSpec(size=32, **GEOMETRIES[geometry], interpolation=interpolation, **IMAGENET)
    assert spec_of(processor_of_spec(spec)) == spec


def square(side: int) -> dict[str, int]:
    return {"height": side, "width": side}


PROCESSORS = {
    "ViT": (ViTImageProcessor(), "squash", 224, 224),
    "ViT 384": (ViTImageProcessor(size=square(384)), "squash", 384, 384),
    "ViT of one number": (ViTImageProcessor(size=224), "squash", 224, 224),
    "ViT of one mean": (ViTImageProcessor(image_mean=0.4, image_std=0.3), "squash", 224, 224),
    "DeiT": (DeiTImageProcessor(), "squash", 256, 224),
    "DeiT 384": (DeiTImageProcessor(size=square(438), crop_size=square(384)), "squash", 438, 384),
    "DeiT without crop": (DeiTImageProcessor(do_center_crop=False), "squash", 256, 256),
    "BEiT": (BeitImageProcessor(), "squash", 224, 224),
    "BEiT 384": (BeitImageProcessor(size=square(384)), "squash", 384, 384),
    "BiT": (BitImageProcessor(), "crop", 224, 224),
    "BiT 256 to 224": (BitImageProcessor(size={"shortest_edge": 256}), "crop", 256, 224),
    "BiT 384": (BitImageProcessor(size={"shortest_edge": 384}, crop_size=square(384)), "crop", 384, 384),
    "ConvNeXt": (ConvNextImageProcessor(size={"shortest_edge": 224}), "crop", 256, 224),
    "ConvNeXt, another share": (ConvNextImageProcessor(size={"shortest_edge": 224}, crop_pct=0.95), "crop", 235, 224),
    "ConvNeXt 384": (ConvNextImageProcessor(), "squash", 384, 384),
}


@pytest.mark.parametrize(("processor", "resize", "resize_to", "size"), PROCESSORS.values(), ids=PROCESSORS)
def test_a_stock_processor_is_read_as_what_it_does_bit_for_bit(processor, resize, resize_to, size, spec_of):
    spec = spec_of(processor)
    assert (spec.resize, spec.resize_to, spec.size) == (resize, resize_to, size)
    for shape in [(300, 400), (400, 250), (401, 250), (250, 403), (180, 180)]:
        image = drawn(*shape)
        assert (by_spec(spec, image) - by_processor(processor, image)).abs().max() == 0, shape


def test_a_pil_image_through_the_written_processor_gives_the_specs_pixels():
    # How a user of the exported folder will call it.
    spec = ImageSpec(size=32, **GEOMETRIES["crop"], interpolation="bicubic", **IMAGENET)
    image = drawn(48, 96)
    pil = Image.fromarray(image.permute(1, 2, 0).numpy())
    theirs = processor_of_spec(spec)(pil, return_tensors="pt")["pixel_values"]
    assert (by_spec(spec, image) - theirs).abs().max() == 0


def test_a_processor_that_does_not_normalise_gives_values_from_0_to_1(spec_of):
    processor = ViTImageProcessor(size=square(32), do_normalize=False)
    spec = spec_of(processor)
    assert (spec.mean, spec.std) == ((0, 0, 0), (1, 1, 1))
    image = drawn(48, 96)
    torch.testing.assert_close(by_spec(spec, image), by_processor(processor, image), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("processor", "found"),
    [
        (ViTImageProcessor(size={"height": 20, "width": 30}), "size {'height': 20, 'width': 30}"),
        (DeiTImageProcessor(crop_size={"height": 20, "width": 30}), "crop {'height': 20, 'width': 30}"),
        (BitImageProcessor(size={"max_height": 64, "max_width": 64}, do_center_crop=False), "'max_height': 64"),
        (BitImageProcessor(size={"max_height": 64, "max_width": 32}, crop_size=square(64)), "'max_width': 32"),
        (BitImageProcessor(size={"max_height": 64, "max_width": 64}, crop_size=square(48)), "'height': 48"),
        (ViTImageProcessor(rescale_factor=1 / 127.5), f"rescale_factor {1 / 127.5}"),
        (ViTImageProcessor(do_rescale=False), "rescale_factor 1.0"),
        (ViTImageProcessor(resample=Image.Resampling.LANCZOS), "resample 1"),
        (ViTImageProcessor(do_resize=False), "size {'height': 224, 'width': 224}"),
        (ConvNextImageProcessor(do_resize=False), "size {'shortest_edge': 384}"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_a_spec_cannot_say_is_refused_by_what_was_found(processor, found, spec_of, tmp_path):
    with pytest.raises(UserError) as refusal:
        spec_of(processor)
    for part in (str(tmp_path), found, "--model.image"):
        assert part in str(refusal.value)


def test_a_checkpoint_without_a_processor_is_an_os_error(tmp_path):
    with pytest.raises(OSError, match=r"preprocessor_config\.json|image processor"):
        spec_of_checkpoint(str(tmp_path))


SPEC = ImageSpec(size=224, resize="squash", resize_to=248, interpolation="bicubic", **IMAGENET)


@pytest.mark.parametrize("resize", [None, "squash"])
def test_resized_keeps_a_spec_that_resizes_that_way_already(resize):
    assert SPEC.resized(resize) is SPEC


@pytest.mark.parametrize(
    ("size", "resize", "resize_to"),
    [(224, "crop", 256), (384, "crop", 439), (32, "crop", 37), (224, "letterbox", 224), (384, "letterbox", 384)],
)
def test_resized_changes_the_way_and_its_side_and_nothing_else(size, resize, resize_to):
    spec = replace(SPEC, size=size)
    assert asdict(spec.resized(resize)) == {**asdict(spec), "resize": resize, "resize_to": resize_to}


def test_resized_from_crop_to_squash_uses_the_whole_image():
    crop = ImageSpec(size=32, resize="crop", resize_to=37, interpolation="bilinear", **IMAGENET)
    squash = crop.resized("squash")
    assert (squash.resize, squash.resize_to) == ("squash", 32)


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("shape", [(48, 96), (95, 40), (10, 14), (1, 200), (200, 1), (1, 1)], ids=str)
def test_every_image_becomes_a_square_of_bytes(geometry, shape):
    spec = ImageSpec(size=32, **GEOMETRIES[geometry], interpolation="bilinear", **IMAGENET)
    pixels = spec.eval_transform(drawn(*shape))
    assert pixels.dtype == torch.uint8
    assert pixels.shape == (3, 32, 32)


@pytest.mark.parametrize(
    ("shape", "rows", "columns"),
    [
        ((50, 100), slice(8, 24), slice(0, 32)),
        ((100, 50), slice(0, 32), slice(8, 24)),
        ((4, 8), slice(8, 24), slice(0, 32)),
        ((64, 64), slice(0, 32), slice(0, 32)),
        ((1, 200), slice(15, 16), slice(0, 32)),
    ],
)
def test_a_letterbox_holds_the_whole_image_between_black_bars(shape, rows, columns):
    spec = ImageSpec(size=32, **GEOMETRIES["letterbox"], interpolation="bilinear", **IMAGENET)
    expected = torch.zeros(3, 32, 32, dtype=torch.uint8)
    expected[:, rows, columns] = 200
    assert torch.equal(spec.eval_transform(torch.full((3, *shape), 200, dtype=torch.uint8)), expected)


def test_a_crop_keeps_the_centre_and_a_squash_keeps_all():
    image = torch.zeros(3, 40, 120, dtype=torch.uint8)
    image[..., :10] = 255  # the left edge
    crop = ImageSpec(size=32, **GEOMETRIES["crop"], interpolation="bilinear", **IMAGENET)
    squash = ImageSpec(size=32, **GEOMETRIES["squash"], interpolation="bilinear", **IMAGENET)
    assert crop.eval_transform(image).max() == 0
    assert squash.eval_transform(image)[..., 0].min() == 255


def test_from_scratch_bytes_are_spread_from_minus_1_to_1():
    spec = spec_of_size(48)
    assert (spec.size, spec.resize_to, spec.resize) == (48, 48, "squash")
    ends = torch.tensor([0, 255], dtype=torch.uint8).repeat(2, 3, 1, 1)
    assert spec.normalise(ends).unique().tolist() == [-1, 1]


def test_each_channel_is_normalised_by_its_own_figures():
    spec = ImageSpec(size=1, resize="squash", resize_to=1, interpolation="bilinear", **IMAGENET)
    values = torch.tensor([51, 102, 204], dtype=torch.uint8).view(1, 3, 1, 1)
    expected = [(0.2 - 0.485) / 0.229, (0.4 - 0.456) / 0.224, (0.8 - 0.406) / 0.225]
    found = spec.normalise(values)
    assert found.dtype == torch.float32
    assert found.flatten().tolist() == pytest.approx(expected, abs=1e-6)
    assert values.flatten().tolist() == [51, 102, 204]
