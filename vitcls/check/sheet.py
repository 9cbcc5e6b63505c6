"""Pictures for the page: samples of each class as the network sees them, and what was found double."""

import base64
from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
import simplejpeg
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as tv

from vitcls.check.findings import Checked
from vitcls.data.datamodule import ImageDataModule
from vitcls.data.decode import decode
from vitcls.data.rows import TableImages
from vitcls.data.sampling import Draw
from vitcls.data.splits import Split
from vitcls.types import Sample

CLASSES = 60  # the page stays readable and small
PER_CLASS = 6
PICTURE = 160  # pixels of the longer side


def sample_sheet(data: ImageDataModule) -> dict[str, list[str]]:
    """Images by class name, each a data URI of a JPEG, after the training transforms.

    Args:
        data: set up for fit.
    """
    rows = data.train_dataloader().dataset
    split = cast(Split, data.splits["train"])
    members: dict[int, list[int]] = {}
    for position in range(len(split)):
        for class_id in split.classes_of(position):
            members.setdefault(class_id, []).append(position)
    sheet = {}
    for class_id, name in list(enumerate(data.labels or []))[:CLASSES]:
        positions = members.get(class_id, [])[:PER_CLASS]
        items = [rows[Draw(position, seed)] for seed, position in enumerate(positions)]
        sheet[name] = [_data_uri(item.pixels) for item in items if isinstance(item, Sample)]
    return sheet


def pictures_of(groups: Sequence[Sequence[Mapping[str, Any]]], checked: Mapping[str, Checked]) -> list[list[str]]:
    """The images of each group of findings, small, as data URIs.

    Args:
        groups: of images, from `findings`.
        checked: by role.
    """
    return [[_picture(image, checked[image["split"]].split) for image in group[:PER_CLASS]] for group in groups]


def _picture(image: Mapping[str, Any], split: Split) -> str:
    position = int(np.searchsorted(split.rows, image["row"]))
    pixels = torch.from_numpy(decode(TableImages(split).read(position))).permute(2, 0, 1)
    return _data_uri(tv.resize(pixels, PICTURE - 1, max_size=PICTURE, antialias=True))


def _data_uri(pixels: Tensor) -> str:
    """(3, H, W) uint8 -> the text of a JPEG that a page can show."""
    jpeg = simplejpeg.encode_jpeg(np.ascontiguousarray(pixels.permute(1, 2, 0).numpy()), quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(jpeg).decode()
