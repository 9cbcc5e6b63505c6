"""The rows of a training set with the sampler that draws them."""

from collections.abc import Mapping
from typing import Any

from vitcls.data.bad_images import TRAINING
from vitcls.data.rows import ImageRows, Images
from vitcls.data.sampling import TrainSampler
from vitcls.data.splits import Split
from vitcls.data.streamed import StreamedImages, StreamedSplit, StreamSampler
from vitcls.data.transforms import Transform


def training_rows(
    split: Split | StreamedSplit,
    images: Images | None,
    transform: Transform,
    said: Mapping[str, Any],
    **shared: int,
) -> tuple[ImageRows, TrainSampler] | tuple[StreamedImages, StreamSampler]:
    """What a DataLoader of the training set takes.

    Args:
        split: the rows.
        images: of a Split; None of a stream.
        transform: of each image.
        said: ImageDataModule's arguments.
        shared: seed of the run, number of processes and rank of this one.
    """
    instead = TRAINING[said["on_bad_image"]]
    if isinstance(split, StreamedSplit):
        return StreamedImages(transform, instead), StreamSampler(split, said["stream_buffer"], **shared)
    assert images is not None
    balanced = said["sampling"] == "balanced"
    sampler = TrainSampler(split.targets, repeats=said["repeats"], balanced=balanced, **shared)
    return ImageRows(images, transform, split.targets, instead), sampler
