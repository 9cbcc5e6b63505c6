"""Augmentation of training images."""

from torch import nn
from torchvision.transforms import v2

from vitcls.data.preprocess import ImageSpec


def train_transform(*, spec: ImageSpec, crop_scale: tuple[float, float], flip: float) -> nn.Module:
    """Random resized crop and horizontal flip: (3, H, W) uint8 -> (3, S, S) uint8.

    Args:
        spec: the network's input size and interpolation.
        crop_scale: smallest and largest share of the image's area that a crop covers, in (0, 1].
        flip: probability of a horizontal flip, in 0..1.

    The aspect ratio of a crop is drawn from 3/4..4/3: Szegedy et al. 2015 (arXiv:1409.4842,
    section 6), as in torchvision.
    """
    crop = v2.RandomResizedCrop(spec.size, scale=crop_scale, interpolation=spec.mode, antialias=True)
    return v2.Compose([crop, v2.RandomHorizontalFlip(flip)])
