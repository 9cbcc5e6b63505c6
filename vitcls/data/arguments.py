"""The ranges of ImageDataModule's arguments."""

from collections.abc import Mapping
from typing import Any

from vitcls.errors import UserError, check_range

_SHARES = ("flip", "max_bad_fraction")
_COUNTS = ("batch_size", "eval_batch_size", "train_limit", "eval_limit", "repeats", "stream_buffer", "train_rows")
# What chooses among the rows, or keeps them, and what it is where it does nothing.
_NOT_OF_STREAMS = {"train_limit": None, "repeats": 1, "sampling": "shuffle", "cache": "none"}
_NOT_NEGATIVE = ("num_workers", "mixup", "cutmix", "feature_views")
# What is made of pixels in each epoch.
_NOT_OF_FEATURES = {"streaming": False, "mixup": 0.0, "cutmix": 0.0}


def check_arguments(said: Mapping[str, Any]) -> None:
    """Refuse a value that cannot be.

    Args:
        said: the arguments by name.

    Raises:
        UserError: names the option, its value and what is valid.
    """
    for name in _SHARES:
        check_range(f"data.{name}", said[name], 0 <= said[name] <= 1, "between 0 and 1")
    for name in _COUNTS:
        check_range(f"data.{name}", said[name], said[name] is None or said[name] >= 1, "at least 1")
    for name in _NOT_NEGATIVE:
        check_range(f"data.{name}", said[name], said[name] is None or said[name] >= 0, "at least 0")
    _check_streaming(said)
    fraction, scale, ratio = said["validation_fraction"], said["crop_scale"], said["crop_ratio"]
    check_range("data.validation_fraction", fraction, 0 < fraction < 1, "between 0 and 1")
    check_range("data.crop_scale", scale, 0 < scale[0] <= scale[1] <= 1, "two rising numbers in (0, 1]")
    check_range("data.crop_ratio", ratio, 0 < ratio[0] <= ratio[1], "two rising numbers above 0")
    check_range("data.label_delimiter", "''", said["label_delimiter"] != "", "at least one character")


def _check_streaming(said: Mapping[str, Any]) -> None:
    for name, idle in _NOT_OF_STREAMS.items():
        if said["streaming"] and said[name] != idle:
            raise UserError(
                f"--data.{name} {said[name]} needs to know all training rows beforehand, and --data.streaming reads "
                "them one after the other; leave one of the two out."
            )


def check_features(said: Mapping[str, Any], head_epochs: float, processes: int) -> None:
    """Refuse features where they could not take the place of images.

    Args:
        said: the arguments by name.
        head_epochs: how many first epochs train the head alone.
        processes: that train together.

    Raises:
        UserError: says what excludes them.
    """
    views = said["feature_views"]
    if not head_epochs:
        raise UserError(
            f"--data.feature_views {views} is for a head that trains on its own; say --model.train head, or how many "
            "--model.freeze_epochs it has before the others, or leave it out."
        )
    for name, idle in _NOT_OF_FEATURES.items():
        if said[name] != idle:
            raise UserError(
                f"--data.{name} {said[name]} needs the images of each epoch, and --data.feature_views {views} computes "
                "features once; leave one of the two out."
            )
    if processes > 1:
        raise UserError(
            f"--data.feature_views {views} is for one process (there are {processes}): a head alone takes seconds; say "
            "--trainer.devices 1 and --trainer.num_nodes 1."
        )
