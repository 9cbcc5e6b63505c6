"""What becomes of images that cannot be decoded: refused, left out or blank, but never unsaid."""

import logging
from collections.abc import Sequence
from typing import Literal

from vitcls.data.rows import Instead
from vitcls.errors import UserError, listing
from vitcls.types import BadImage

log = logging.getLogger(__name__)

OnBadImage = Literal["error", "skip", "blank"]
# What takes the place of a bad image. Training batches stay full, so that all processes take the same
# steps; evaluation never substitutes another image.
TRAINING: dict[OnBadImage, Instead] = {"error": "bad", "skip": "next", "blank": "blank"}
EVALUATION: dict[OnBadImage, Instead] = {"error": "bad", "skip": "bad", "blank": "blank"}


class BadImages:
    """Names each bad image once, and stops where there are too many.

    Args:
        policy: `error` stops at the first one.
        most: the share of the rows that may be bad, in 0..1.
    """

    def __init__(self, policy: OnBadImage, most: float) -> None:
        self._policy = policy
        self._most = most
        self._met: dict[str, set[str]] = {}

    def take(self, bad: Sequence[BadImage], role: str, rows: float) -> None:
        """Take the bad images of a batch in.

        Args:
            bad: they.
            role: train, validation or test.
            rows: of the role that this process meets.

        Raises:
            UserError: one is too many; names it and its cause.
        """
        if bad and self._policy == "error":
            raise UserError(
                f"An image cannot be decoded: {_told(bad)}. Replace it, remove it from the data, or say "
                "--data.on_bad_image skip (or blank).",
                of_one_process=True,
            )
        met = self._met.setdefault(role, set())
        fresh = [image for image in bad if image.name not in met]
        met.update(image.name for image in fresh)
        done = "left out" if self._policy == "skip" else "taken as a blank image"
        for image in fresh:
            # An error by its level: processes other than the first stay silent below that.
            log.error("cannot be decoded, %s: %s: %s", done, image.name, image.cause)
        if len(met) > self._most * rows:
            raise UserError(
                f"{len(met)} of {round(rows)} {role} images cannot be decoded, more than --data.max_bad_fraction "
                f"{self._most} allows; the last: {_told(fresh or bad)}. Mend the data, or allow more.",
                of_one_process=True,
            )


def _told(bad: Sequence[BadImage]) -> str:
    return listing((f"{image.name}: {image.cause}" for image in bad), 3)
