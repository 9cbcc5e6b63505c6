import numpy as np
import pytest
import torch

from tests.test_preprocess import GEOMETRIES, IMAGENET, INTERPOLATIONS
from vitcls.data.preprocess import ImageSpec
from vitcls.input_pixels import normalise, prepare
from vitcls.input_spec import InputSpec

SIZES = (32, 224)  # torch takes another loop for the nearest pixel of small images
EXTREME = [(1, 1), (1, 90), (90, 1), (2, 3), (31, 33), (32, 32), (32, 77), (224, 224), (224, 500), (500, 224)]


def shapes(seed: int) -> list[tuple[int, int]]:
    """Of lines, small images that are made larger, and large ones."""
    random = np.random.default_rng(seed)
    small = random.integers(2, 60, (20, 2))
    large = random.integers(60, 900, (12, 2))
    return [*EXTREME, *((int(height), int(width)) for height, width in [*small, *large])]


def drawn(shape: tuple[int, int], black_and_white: bool) -> np.ndarray:
    """Noise; of black and white, cubic sums leave 0..255."""
    pixels = np.random.default_rng(shape).integers(0, 256, (*shape, 3), dtype=np.uint8)
    return np.where(pixels > 127, np.uint8(255), np.uint8(0)) if black_and_white else pixels


def spec_of(geometry: str, size: int, interpolation: str) -> ImageSpec:
    fields = GEOMETRIES[geometry]
    resize_to = round(fields["resize_to"] * size / 32)
    return ImageSpec(size, resize_to, fields["resize"], interpolation, **IMAGENET)


def by_torch(spec: ImageSpec, pixels: np.ndarray) -> np.ndarray:
    return spec.eval_transform(torch.from_numpy(pixels).permute(2, 0, 1)).numpy()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_prepared_pixels_are_the_trainings_to_the_last_bit(geometry, interpolation, size):
    spec = spec_of(geometry, size, interpolation)
    plain = InputSpec.of_record(spec.record())
    for number, shape in enumerate(shapes(seed=size)):
        pixels = drawn(shape, black_and_white=number % 2 == 0)
        ours, theirs = prepare(plain, pixels), by_torch(spec, pixels)
        assert ours.dtype == np.uint8
        assert ours.shape == theirs.shape == (3, size, size)
        assert np.array_equal(ours, theirs), shape


@pytest.mark.parametrize(("side", "size"), [(2, 293), (4, 293), (2, 41), (4, 82)])
def test_the_nearest_of_two_pixels_equally_near_is_torchs(side, size):
    """Centres between two pixels, where the loops of torch round otherwise."""
    spec = ImageSpec(size, size, "squash", "nearest", **IMAGENET)
    pixels = drawn((side, side), black_and_white=False)
    assert np.array_equal(prepare(spec, pixels), by_torch(spec, pixels))


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_a_photo_of_twelve_megapixels_is_prepared_as_in_training(interpolation):
    spec = spec_of("crop", 224, interpolation)
    pixels = drawn((3000, 4000), black_and_white=False)
    assert np.array_equal(prepare(spec, pixels), by_torch(spec, pixels))


def test_pixels_that_are_a_view_of_others_are_prepared_as_any():
    spec = spec_of("crop", 32, "bicubic")
    pixels = drawn((90, 120), black_and_white=False)
    view = pixels[::-1, 10:100:2, ::-1]
    assert np.array_equal(prepare(spec, view), by_torch(spec, view.copy()))


def test_preparing_leaves_the_image_as_it_was():
    spec = spec_of("squash", 32, "bilinear")
    pixels = drawn((32, 32), black_and_white=False)
    before = pixels.copy()
    prepare(spec, pixels)[:] = 0
    assert np.array_equal(pixels, before)


def test_normalised_values_are_the_trainings_to_the_last_bit():
    spec = spec_of("squash", 32, "bilinear")
    batch = np.arange(256, dtype=np.uint8).repeat(3 * 4).reshape(256, 1, 3, 4).transpose(0, 2, 1, 3).copy()
    ours, theirs = normalise(spec, batch), spec.normalise(torch.from_numpy(batch)).numpy()
    assert ours.dtype == np.float32
    assert np.array_equal(ours, theirs)
