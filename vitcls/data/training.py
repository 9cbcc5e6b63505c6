"""The rows of a training set with the sampler that draws them."""

from collections.abc import Mapping
from typing import Any

from vitcls.data.bad_images import TRAINING
from vitcls.data.preprocess import ImageSpec
from vitcls.data.rows import ImageRows, Images
from vitcls.data.sampling import TrainSampler
from vitcls.data.splits import Split
from vitcls.data.streamed import StreamedImages, StreamedSplit, StreamSampler
from vitcls.data.transforms import Transform, listed_transform, train_transform


def training_rows(
    split: Split | StreamedSplit,
    images: Images | None,
    spec: ImageSpec,
    said: Mapping[str, Any],
    seed: int,
    processes: int,
    rank: int,
    feature_epochs: float = 0,
) -> tuple[ImageRows, TrainSampler] | tuple[StreamedImages, StreamSampler]:
    """What a DataLoader of the training set takes.

    Args:
        split: the rows.
        images: of a Split; None of a stream.
        spec: how the network wants its images.
        said: ImageDataModule's arguments.
        seed: the run's.
        processes: how many share the rows.
        rank: which of them this is.
        feature_epochs: how many first epochs take features instead of images.
    """
    transform, instead = _transform(spec, said), TRAINING[said["on_bad_image"]]
    if isinstance(split, StreamedSplit):
        return StreamedImages(transform, instead), StreamSampler(split, said["stream_buffer"], seed, processes, rank)
    assert images is not None
    balanced = said["sampling"] == "balanced"
    sampler = TrainSampler(
        split.targets, seed, processes, rank, repeats=said["repeats"], balanced=balanced, feature_epochs=feature_epochs
    )
    return ImageRows(images, transform, split.targets, instead), sampler


def _transform(spec: ImageSpec, said: Mapping[str, Any]) -> Transform:
    if said["transforms"] is not None:
        return listed_transform(said["transforms"], spec.size)
    words = {name: said[name] for name in ("augment", "crop_scale", "crop_ratio", "flip")}
    return train_transform(spec=spec, **words)
