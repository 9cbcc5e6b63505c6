"""Augmentation of training images: presets, and lists of torchvision's transforms by name."""

import inspect
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as tv

from vitcls.data.preprocess import ImageSpec
from vitcls.data.seeding import seeded
from vitcls.errors import UserError, suggestion

Augment = Literal["none", "light", "standard", "strong"]
Transform = Callable[[Tensor], Tensor]

_NAMES = sorted(
    name
    for name, item in vars(v2).items()
    if inspect.isclass(item) and issubclass(item, v2.Transform) and item is not v2.Transform
    if name not in ("MixUp", "CutMix")  # these mix a batch: data.mixup, data.cutmix
)


def train_transform(
    *,
    spec: ImageSpec,
    augment: Augment,
    crop_scale: tuple[float, float],
    crop_ratio: tuple[float, float],
    flip: float,
) -> Transform:
    """A preset: (3, H, W) uint8 -> (3, S, S) uint8.

    Args:
        spec: the network's input size, interpolation and mean.
        augment: `none` is the evaluation's preprocessing. `light` crops at random (Szegedy et al.
            2014, arXiv:1409.4842, section 6) and mirrors. `standard` adds 3-Augment (Touvron et al.
            2022, arXiv:2204.07118, section 3). `strong` adds to `light` two operations of RandAugment
            (Cubuk et al. 2019, arXiv:1909.13719) and erases in a quarter of the images (Zhong et al.
            2017, arXiv:1708.04896), as DeiT does (arXiv:2012.12877, table 9).
        crop_scale: smallest and largest share of the image's area that a crop covers, in (0, 1].
        crop_ratio: narrowest and widest aspect ratio of a crop, width over height.
        flip: probability that an image is mirrored, in 0..1.
    """
    if augment == "none":
        return spec.eval_transform
    mode = spec.mode
    light = [
        RandomCrop(spec.size, scale=crop_scale, ratio=crop_ratio, interpolation=mode, antialias=True),
        RandomMirror(flip),
    ]
    return v2.Compose([*light, *_beyond_light(spec, augment)])


def listed_transform(entries: list[dict[str, Any]], size: int) -> Transform:
    """A list of torchvision's v2 transforms: (3, H, W) uint8 -> (3, S, S) uint8.

    Args:
        entries: each a `name` of torchvision.transforms.v2 and its arguments.
        size: S, which they have to end with.

    Raises:
        UserError: an unknown name or argument, or another shape at the end.
    """
    named = [_named(entry) for entry in entries]
    try:
        transform = _Listed(named, size)
        with seeded(0):
            for shape in ((3, 2 * size, 3 * size), (3, 3 * size, 2 * size)):
                transform(torch.zeros(shape, dtype=torch.uint8))
    except UserError:
        raise
    except Exception as error:  # a transform raises whatever does not suit it
        raise UserError(
            f"--data.transforms cannot be applied to a uint8 image: {' '.join(str(error).split())}"
        ) from error
    return transform


class RandomCrop(v2.RandomResizedCrop):
    """torchvision's RandomResizedCrop of one image: the same draws and the same pixels in less time.

    Resizing takes 140 us instead of 200 where the crop lies in memory as decoded images do, pixel after
    pixel, and the dispatch over kinds of inputs is left out.
    """

    def forward(self, image: Tensor) -> Tensor:
        """(3, H, W) uint8 -> (3, S, S) uint8."""
        box = self.make_params([image])
        top, left = box["top"], box["left"]
        crop = image[:, top : top + box["height"], left : left + box["width"]]
        crop = crop.unsqueeze(0).contiguous(memory_format=torch.channels_last).squeeze(0)
        return tv.resize(crop, self.size, self.interpolation, antialias=self.antialias)


class RandomMirror(v2.RandomHorizontalFlip):
    """torchvision's RandomHorizontalFlip of one image, without its dispatch over kinds of inputs."""

    def forward(self, image: Tensor) -> Tensor:
        """(..., W) of any type, of the same shape."""
        return image.flip(-1) if torch.rand(1) < self.p else image


class _Listed(nn.Module):
    def __init__(self, transforms: list[nn.Module], size: int) -> None:
        super().__init__()
        self._all = v2.Compose(transforms)
        self._size = size

    def forward(self, image: Tensor) -> Tensor:
        pixels = self._all(image)
        found, wanted = tuple(pixels.shape), (3, self._size, self._size)
        if found != wanted or pixels.dtype != image.dtype:
            raise UserError(
                f"--data.transforms end with {found} {pixels.dtype}, but the network takes {wanted} {image.dtype}: "
                f"let one of them, such as {{name: RandomResizedCrop, size: {self._size}}}, give that size, and "
                "leave normalising to the model.",
                of_one_process=True,
            )
        return pixels


def _beyond_light(spec: ImageSpec, augment: Augment) -> list[nn.Module]:
    if augment == "light":
        return []
    if augment == "standard":
        one_of_three = [v2.RandomGrayscale(p=1), v2.RandomSolarize(threshold=128, p=1), v2.GaussianBlur(5, (0.1, 2.0))]
        return [v2.RandomChoice(one_of_three), v2.ColorJitter(0.3, 0.3, 0.3)]
    mean = [round(255 * channel) for channel in spec.mean]  # what is erased becomes zero when normalised
    return [v2.RandAugment(num_ops=2, magnitude=9, interpolation=spec.mode), v2.RandomErasing(p=0.25, value=mean)]


def _named(entry: dict[str, Any]) -> nn.Module:
    arguments = dict(entry)
    name = arguments.pop("name", None)
    if name not in _NAMES:
        raise UserError(
            f"--data.transforms has {entry}; its name must be that of a transform of torchvision.transforms.v2"
            f"{suggestion(str(name), _NAMES)}, as in {{name: ColorJitter, brightness: 0.4}}."
        )
    if isinstance(arguments.get("interpolation"), str):
        arguments["interpolation"] = _interpolation(name, arguments["interpolation"])
    try:
        return getattr(v2, name)(**arguments)
    except Exception as error:  # as above
        takes = ", ".join(inspect.signature(getattr(v2, name)).parameters)
        raise UserError(f"--data.transforms: {name} refuses {arguments} ({error}); it takes {takes}.") from error


def _interpolation(name: str, word: str) -> InterpolationMode:
    valid = [mode.value for mode in InterpolationMode]
    if word not in valid:
        raise UserError(f"--data.transforms: {name} has interpolation {word!r}; it must be one of {', '.join(valid)}.")
    return InterpolationMode(word)
