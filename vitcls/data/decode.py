"""Bytes of an image file -> upright RGB pixels."""

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError

from vitcls.errors import BadImageError

try:
    import simplejpeg
except ImportError:  # where a model is only deployed: Pillow decodes the same pixels at half the speed
    simplejpeg = None

Pixels = NDArray[np.uint8]

Image.init()
# Raster formats alone, those that this Pillow has. It would hand PostScript to Ghostscript, which
# executes it, whatever the file's name says.
FORMATS: list[str] = [
    f for f in ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "AVIF", "JPEG2000") if f in Image.OPEN
]

# Resizing the shorter side of a line to the input's size would make gigabytes of it.
MOST_ELONGATED = 100

# EXIF orientation -> (transpose, flip rows, flip columns), EXIF 2.32, tag 0x0112.
_UPRIGHT = {
    1: (False, False, False),
    2: (False, False, True),
    3: (False, True, True),
    4: (False, True, False),
    5: (True, False, False),
    6: (True, False, True),
    7: (True, True, True),
    8: (True, True, False),
}


class _NoWarnings:
    """Within it nothing warns, in however many threads at once.

    Of two threads in `warnings.catch_warnings`, the second to leave brings back the filter of the first, for good. So
    the first of ours to come in sets the filter, and the last to leave takes it away.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._filters = warnings.catch_warnings()

    def __enter__(self) -> None:
        with self._lock:
            if self._inside == 0:
                self._filters = warnings.catch_warnings()
                self._filters.__enter__()
                warnings.simplefilter("ignore")
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                self._filters.__exit__(None, None, None)


no_warnings = _NoWarnings()  # of metadata that is corrupt beside whole pixels


class Decoded(NamedTuple):
    """An image, and what its file said of it.

    Attributes:
        pixels: (H, W, 3) uint8 RGB, upright.
        mode: Pillow's name of how the file stores pixels, such as `RGB`, `P` or `CMYK`.
        orientation: EXIF's, 1..8, applied to the pixels already; 1 where there is none.
    """

    pixels: Pixels
    mode: str
    orientation: int


def decode(data: bytes) -> Pixels:
    """The pixels alone of `decode_file`."""
    return decode_file(data).pixels


def decode_file(data: bytes) -> Decoded:
    """Decode an image file.

    JPEGs in RGB or gray go through libjpeg-turbo directly, everything else through Pillow; where
    both can read a file the pixels are the same. The first frame of an animation counts.

    Args:
        data: the file's bytes.

    Returns:
        pixels (H, W, 3) uint8 RGB, upright by the EXIF orientation, and what the file said. Gray, palette,
        CMYK, 16-bit and one-bit images are converted; transparency is laid over white; 16 bits are scaled to 8.

    Raises:
        BadImageError: empty, truncated or not an image; the message says which.
    """
    if not data:
        raise BadImageError("the file is empty (0 bytes)")
    with _causes_told(), Image.open(BytesIO(data), formats=FORMATS) as image:
        return _decoded(image, data)


def decode_opened(image: Image.Image) -> Pixels:
    """The same of an image that Pillow has opened or made: (H, W, 3) uint8 RGB, upright.

    Raises:
        BadImageError: truncated, or nothing that RGB can be made of; the message says which.
    """
    with _causes_told():
        return _decoded(image, None).pixels


def check_shape(height: int, width: int) -> None:
    """Refuse what is no picture.

    Raises:
        BadImageError: without pixels, or a line.
    """
    if not height or not width:
        raise BadImageError(f"{width}x{height} pixels are no picture")
    if max(height, width) > MOST_ELONGATED * min(height, width):
        raise BadImageError(f"{width}x{height} pixels are a line, not a picture")


@contextmanager
def _causes_told() -> Iterator[None]:
    """Whatever goes wrong with an image becomes a BadImageError."""
    try:
        with no_warnings:
            yield
    except BadImageError:
        raise
    except UnidentifiedImageError as error:
        raise BadImageError("the content is not an image of a known format") from error
    except Exception as error:
        raise BadImageError(str(error) or type(error).__name__) from error


def _decoded(image: Image.Image, data: bytes | None) -> Decoded:
    """Of an opened image, and of the bytes of its file where they are at hand."""
    check_shape(image.height, image.width)
    mode = image.mode  # as stored: loading may change it
    pixels = _pixels(image, data)
    orientation = _orientation(image)
    return Decoded(_upright(pixels, orientation), mode, orientation)


def _pixels(image: Image.Image, data: bytes | None) -> Pixels:
    if data is not None and simplejpeg is not None and image.format in ("JPEG", "MPO") and image.mode in ("RGB", "L"):
        try:
            return simplejpeg.decode_jpeg(data, colorspace="RGB")
        except ValueError:
            pass  # stricter than Pillow, which decides below whether the file is readable
    return np.array(_to_rgb(image))  # a copy: Pillow's own memory is not writable


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation that is still to be applied; 1, upright, where EXIF cannot be read.

    Asked for after decoding: Pillow turns a TIFF while it loads it, and then forgets its tag.
    """
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # noqa: BLE001 - as in decode; the pixels are none the worse for it
        return 1
    return orientation if orientation in _UPRIGHT else 1


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise BadImageError("floating-point pixels have no range to convert from")
    if image.mode.startswith("I"):
        # Pillow's own conversion clips 16-bit values at 255: most of the picture would turn white.
        values = np.asarray(image).clip(0, 65535) // 257
        return Image.fromarray(values.astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        layer = image.convert("RGBA")
        white = Image.new("RGBA", layer.size, "white")
        return Image.alpha_composite(white, layer).convert("RGB")
    return image.convert("RGB")


def _upright(pixels: Pixels, orientation: int) -> Pixels:
    transpose, flip_rows, flip_columns = _UPRIGHT[orientation]
    if transpose:
        pixels = pixels.transpose(1, 0, 2)
    if flip_rows:
        pixels = pixels[::-1]
    if flip_columns:
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)
