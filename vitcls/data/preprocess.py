"""How a checkpoint wants its images: read from its image processor, kept, written back."""

from functools import lru_cache
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as tv
from transformers import AutoImageProcessor, BitImageProcessor, DeiTImageProcessor, ViTImageProcessor

from vitcls.errors import UserError
from vitcls.input_spec import InputSpec, Interpolation, Resize


class ImageSpec(InputSpec):
    """The same with what torch and torchvision do of it."""

    def eval_transform(self, image: Tensor) -> Tensor:
        """Preprocess for evaluation, equal to the checkpoint's own image processor.

        Args:
            image: (3, H, W) uint8.

        Returns:
            (3, S, S) uint8.
        """
        height, width = image.shape[-2:]
        image = tv.resize(image, self.resized_shape(height, width), self.mode, antialias=True)
        return _centre(image, self.size)

    def five_crops(self, image: Tensor) -> Tensor:
        """The corners and the centre, of an image whose shorter side is resized as for a centre crop.

        Krizhevsky et al. 2012 (ImageNet classification with deep CNNs, section 4.1).

        Args:
            image: (3, H, W) uint8.

        Returns:
            (5, 3, S, S) uint8.
        """
        spec = self.resized("crop")
        height, width = image.shape[-2:]
        image = tv.resize(image, spec.resized_shape(height, width), self.mode, antialias=True)
        corners = tv.five_crop(image, [self.size, self.size])[:4]
        return torch.stack([*corners, _centre(image, self.size)])

    @property
    def mode(self) -> InterpolationMode:
        """The interpolation as torchvision names it, and as transformers means it."""
        return InterpolationMode("nearest-exact" if self.interpolation == "nearest" else self.interpolation)

    def normalise(self, pixel_values: Tensor) -> Tensor:
        """(..., 3, S, S) uint8 -> float32 with mean and std applied, on the same device.

        The order of operations is that of transformers' image processors that normalise, so that
        both give the same bits: mean and std are scaled by 255, not the pixels by 1/255.
        """
        mean, std = _scaled_statistics(self, pixel_values.device)
        # Batches may lie in memory pixel after pixel; networks are fastest with each colour together.
        return pixel_values.to(torch.float32, memory_format=torch.contiguous_format).sub_(mean).div_(std)


def spec_of_checkpoint(checkpoint: str, revision: str | None = None) -> ImageSpec:
    """Read the preprocessing from a checkpoint's image processor.

    Args:
        checkpoint: Hub id or folder.
        revision: of the Hub repository.

    Raises:
        UserError: the processor does something that an ImageSpec cannot say.
        OSError: there is no image processor, or the Hub cannot be reached.
    """
    processor = AutoImageProcessor.from_pretrained(checkpoint, revision=revision, trust_remote_code=False)
    return _spec_of_processor(processor.to_dict(), checkpoint)


def spec_of_size(size: int) -> ImageSpec:
    """The preprocessing of a network from scratch: squashed to `size`, scaled to -1..1."""
    half = (0.5, 0.5, 0.5)
    return ImageSpec(size, size, "squash", "bilinear", mean=half, std=half)


def processor_of_spec(spec: ImageSpec) -> Any:
    """A stock transformers image processor that does what the spec says, to the last bit.

    Letterboxing is written as a resize into a square followed by a centre crop of that square:
    a centre crop larger than its image pads it with black.
    """
    square = {"height": spec.size, "width": spec.size}
    common = {
        "image_mean": list(spec.mean),
        "image_std": list(spec.std),
        "resample": int(Image.Resampling[spec.interpolation.upper()]),
    }
    if spec.resize == "letterbox":
        inside = {"max_height": spec.size, "max_width": spec.size}
        return BitImageProcessor(size=inside, crop_size=square, **common)
    if spec.resize == "crop":
        return BitImageProcessor(size={"shortest_edge": spec.resize_to}, crop_size=square, **common)
    if spec.resize_to == spec.size:
        return ViTImageProcessor(size=square, **common)
    larger = {"height": spec.resize_to, "width": spec.resize_to}
    return DeiTImageProcessor(size=larger, crop_size=square, **common)


@lru_cache(maxsize=16)  # a copy to the device in every step would wait for the step before it
def _scaled_statistics(spec: ImageSpec, device: torch.device) -> tuple[Tensor, Tensor]:
    """(mean, std) of pixels in 0..255, each (3, 1, 1) float32 on the device."""
    mean, std = (torch.tensor(values).mul_(255).view(3, 1, 1).to(device) for values in (spec.mean, spec.std))
    return mean, std


def _centre(image: Tensor, size: int) -> Tensor:
    """The central square, black where the image is smaller.

    torchvision's own `center_crop` rounds half a pixel where transformers cuts it off: a quarter of
    all photo sizes would be one pixel away from what the checkpoint's processor takes.
    """
    height, width = image.shape[-2:]
    lacks_width, lacks_height = max(0, size - width), max(0, size - height)
    if lacks_width or lacks_height:
        before, after = (lacks_width // 2, lacks_height // 2), (-(-lacks_width // 2), -(-lacks_height // 2))
        image = tv.pad(image, [*before, *after])
        height, width = image.shape[-2:]
    return tv.crop(image, (height - size) // 2, (width - size) // 2, size, size)


def _spec_of_processor(config: dict[str, Any], checkpoint: str) -> ImageSpec:
    resize, resize_to, size = _geometry(config, checkpoint)
    _check_scaling(config, checkpoint)
    normalises = config.get("do_normalize", True)
    return ImageSpec(
        size=size,
        resize_to=resize_to,
        resize=resize,
        interpolation=_interpolation(config, checkpoint),
        mean=_channels(config["image_mean"]) if normalises else (0.0, 0.0, 0.0),
        std=_channels(config["image_std"]) if normalises else (1.0, 1.0, 1.0),
    )


def _geometry(config: dict[str, Any], checkpoint: str) -> tuple[Resize, int, int]:
    """(how, side after the resize, side after the crop) of a processor's configuration."""
    size = {name: value for name, value in dict(config.get("size") or {}).items() if value}
    crop = dict(config.get("crop_size") or {}) if config.get("do_center_crop") else {}
    target = crop.get("height")
    asked = {name: config.get(name) for name in ("do_resize", "do_center_crop", "do_pad", "crop_pct")}
    found = _unsupported(checkpoint, f"size {size}, crop {crop or None}, {asked}")
    if not config.get("do_resize", True) or config.get("do_pad") or target != crop.get("width"):
        raise found
    if size.keys() == {"shortest_edge"}:
        short = size["shortest_edge"]
        if "crop_pct" in config and not crop:
            # ConvNeXt (arXiv:2201.03545): below 384 a crop of crop_pct, from 384 on a plain resize.
            return ("crop", int(short / config["crop_pct"]), short) if short < 384 else ("squash", short, short)
        if crop and "crop_pct" not in config:
            return "crop", short, crop["height"]
    if size.keys() == {"max_height", "max_width"} and set(size.values()) == {target}:
        return "letterbox", size["max_height"], size["max_height"]
    if size.keys() == {"height", "width"} and size["height"] == size["width"]:
        return "squash", size["height"], target or size["height"]
    raise found


def _interpolation(config: dict[str, Any], checkpoint: str) -> Interpolation:
    names: dict[int, Interpolation] = {0: "nearest", 2: "bilinear", 3: "bicubic"}
    resample = int(config.get("resample", 2))
    if resample not in names:
        raise _unsupported(checkpoint, f"resample {resample}")
    return names[resample]


def _check_scaling(config: dict[str, Any], checkpoint: str) -> None:
    factor = config.get("rescale_factor", 1 / 255) if config.get("do_rescale", True) else 1.0
    if abs(factor * 255 - 1) > 1e-6:
        raise _unsupported(checkpoint, f"rescale_factor {factor}")


def _channels(values: float | list[float]) -> tuple[float, float, float]:
    if isinstance(values, (int, float)):
        return (float(values),) * 3
    red, green, blue = (float(value) for value in values)
    return red, green, blue


def _unsupported(checkpoint: str, found: str) -> UserError:
    return UserError(
        f"The image processor of {checkpoint!r} asks for {found}, which is not a resize to one square "
        "input with values scaled to 0..1. Give the preprocessing with --model.image, or take a "
        "checkpoint whose processor does that (ViT, DeiT, BEiT, Swin, DINOv2, ConvNeXt, ResNet)."
    )
