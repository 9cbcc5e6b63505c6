"""The ranges of ImageDataModule's arguments."""

from collections.abc import Mapping
from typing import Any

from vitcls.errors import check_range

_SHARES = ("flip", "max_bad_fraction")
_COUNTS = ("batch_size", "eval_batch_size", "train_limit", "eval_limit", "repeats")  # None: not given
_NOT_NEGATIVE = ("num_workers", "mixup", "cutmix")


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
    fraction, scale, ratio = said["validation_fraction"], said["crop_scale"], said["crop_ratio"]
    check_range("data.validation_fraction", fraction, 0 < fraction < 1, "between 0 and 1")
    check_range("data.crop_scale", scale, 0 < scale[0] <= scale[1] <= 1, "two rising numbers in (0, 1]")
    check_range("data.crop_ratio", ratio, 0 < ratio[0] <= ratio[1], "two rising numbers above 0")
    check_range("data.label_delimiter", "''", said["label_delimiter"] != "", "at least one character")
