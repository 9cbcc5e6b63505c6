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
        self._named: set[str] = set()
        self._met: dict[str, tuple[int, set[tuple[str, int]]]] = {}  # role -> epoch, and those met in it

    def take(self, bad: Sequence[BadImage], role: str, rows: float, epoch: int = 0) -> None:
        """Take the bad images of a batch in.

        Args:
            bad: they.
            role: train, validation or test.
            rows: of the role that this process meets in an epoch.
            epoch: in which they were met; each is counted anew.

        Raises:
            UserError: one is too many; names it and its cause.
        """
        if bad and self._policy == "error":
            raise UserError(
                f"An image cannot be decoded: {_told(bad)}. Replace it, remove it from the data, or say "
                "--data.on_bad_image skip (or blank).",
                of_one_process=True,
            )
        done = "left out" if self._policy == "skip" else "taken as a blank image"
        for image in bad:
            if image.name not in self._named:
                # An error by its level: processes other than the first stay silent below that.
                log.error("cannot be decoded, %s: %s: %s", done, image.name, image.cause)
        self._named.update(image.name for image in bad)
        before, met = self._met.get(role, (epoch, set()))
        met = (met if before == epoch else set()) | {(image.name, image.id) for image in bad}
        self._met[role] = epoch, met
        if len(met) > self._most * rows:
            raise UserError(
                f"{len(met)} of {round(rows)} {role} images cannot be decoded, more than --data.max_bad_fraction "
                f"{self._most} allows; the last: {_told(bad)}. Mend the data, or allow more.",
                of_one_process=True,
            )


def _told(bad: Sequence[BadImage]) -> str:
    return listing((f"{image.name}: {image.cause}" for image in bad), 3)
