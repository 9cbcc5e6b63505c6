"""Sample images of each class, as the network sees them in training."""

import base64

import numpy as np
import simplejpeg

from vitcls.data.datamodule import ImageDataModule
from vitcls.data.sampling import Draw
from vitcls.types import Sample

CLASSES = 60  # the page stays readable and small
PER_CLASS = 6


def sample_sheet(data: ImageDataModule) -> dict[str, list[str]]:
    """Images by class name, each a data URI of a JPEG, after the training transforms.

    Args:
        data: set up for fit.
    """
    rows = data.train_dataloader().dataset
    class_ids = data.splits["train"].class_ids
    sheet = {}
    for class_id, name in list(enumerate(data.labels or []))[:CLASSES]:
        positions = np.flatnonzero(class_ids == class_id)[:PER_CLASS].tolist()
        items = [rows[Draw(position, seed)] for seed, position in enumerate(positions)]
        sheet[name] = [_data_uri(item) for item in items if isinstance(item, Sample)]
    return sheet


def _data_uri(sample: Sample) -> str:
    pixels = np.ascontiguousarray(sample.pixels.permute(1, 2, 0).numpy())
    jpeg = simplejpeg.encode_jpeg(pixels, quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(jpeg).decode()
