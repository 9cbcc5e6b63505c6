"""What the server takes: bounds of one request and of all together, and how it says no."""

from dataclasses import dataclass
from io import BytesIO
from typing import Self

from PIL import Image

from vitcls.data.decode import FORMATS, no_warnings

_LONGEST_MAGIC = 16  # bytes by which Pillow tells a format
MOST_PIXELS = 2 * (Image.MAX_IMAGE_PIXELS or 0)  # Pillow opens no image with more
_OF_A_PART = 8192  # bytes of a multipart body beside the image itself: boundary and headers
RETRY_AFTER = "1"  # seconds


@dataclass(frozen=True)
class Limits:
    """Bounds.

    Attributes:
        max_bytes: of an image file.
        max_pixels: of an image, width times height; at most `MOST_PIXELS`.
        max_images: of a request.
        queue: images in the house at once, from the first byte of their upload until they are answered.
        timeout: seconds for a body to arrive, and again for its answer.
    """

    max_bytes: int = 20_000_000
    max_pixels: int = 50_000_000
    max_images: int = 16
    queue: int = 64
    timeout: float = 30.0

    @property
    def max_body(self) -> int:
        """Bytes of the largest body that can be within the other bounds."""
        return self.max_images * (self.max_bytes + _OF_A_PART) + _OF_A_PART


class Refusal(Exception):  # noqa: N818 - an answer, not an error of ours
    """A request, or an image of it, that is not answered.

    Args:
        status: of HTTP.
        message: a sentence for the client, without anything of the server.
        image: name of the image that is to blame, as the client gave it.
    """

    def __init__(self, status: int, message: str, image: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.image = image


class Places:
    """How many images may be in the house.

    Args:
        size: that many.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.taken = 0

    def guest(self) -> "Guest":
        """Who takes places, and gives all of them back at the end of its `with`."""
        return Guest(self)


class Guest:
    """A request.

    Args:
        places: what it takes from.
    """

    def __init__(self, places: Places) -> None:
        self._places = places
        self.images = 0

    def take(self) -> None:
        """Take one more place.

        Raises:
            Refusal: there is none left.
        """
        if self._places.taken >= self._places.size:
            raise Refusal(429, "The server has as many images waiting as it takes; try again in a moment.")
        self._places.taken += 1
        self.images += 1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._places.taken -= self.images
        self.images = 0


def check_image(name: str, data: bytes, limits: Limits) -> None:
    """Judge an image by its first bytes and its header; nothing is decoded.

    Raises:
        Refusal: 415, of no image type; 413, more pixels than are taken. What has a type and no readable header is
            left to the decoder.
    """
    if data and not _has_type(data):
        raise Refusal(415, "The content is of no image type that is taken: send JPEG, PNG, WebP or the like.", name)
    try:
        width, height = _size(data)
    except Image.DecompressionBombError as error:
        raise Refusal(
            413, f"The image has more than {limits.max_pixels:,} pixels, the most that are taken.", name
        ) from error
    if width * height > limits.max_pixels:
        raise Refusal(413, f"The image has {width}x{height} pixels; at most {limits.max_pixels:,} are taken.", name)


def _has_type(data: bytes) -> bool:
    magic = data[:_LONGEST_MAGIC]
    return any(accept is not None and accept(magic) for _, accept in (Image.OPEN[name] for name in FORMATS))


def _size(data: bytes) -> tuple[int, int]:
    """(width, height) as the header says; (0, 0) where it cannot be read."""
    try:
        with no_warnings, Image.open(BytesIO(data), formats=FORMATS) as image:
            return image.size
    except Image.DecompressionBombError:
        raise
    except Exception:  # noqa: BLE001 - Pillow raises many kinds; the decoder says which
        return 0, 0
