import struct
import threading
import warnings
import zlib
from collections.abc import Iterator
from io import BytesIO

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageOps

from vitcls.data.decode import decode, decode_opened
from vitcls.errors import BadImageError

ORIENTATIONS = range(1, 9)
RED, GREEN, BLUE, DARK, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (9, 9, 9), (255, 255, 255)
GRAY = np.array([[0, 85, 170, 255]], dtype=np.uint8)
COLOURS = np.array([[RED, GREEN, BLUE, DARK]], dtype=np.uint8)
DEEP = np.array([[0, 257, 25_700, 65_535]])
CLEAR_TO_OPAQUE = np.array([[0, 255, 128, 255]], dtype=np.uint8)


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    buffer = BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def photo(width: int, height: int, seed: int = 0) -> Image.Image:
    """Smooth like a photo: edges and gradients, so that chroma subsampling has something to interpolate."""
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def palette_image() -> Image.Image:
    image = Image.new("P", (4, 1))
    image.putpalette(COLOURS.tobytes())
    image.putdata([0, 1, 2, 3])
    return image


def by_pillow(data: bytes) -> np.ndarray:
    return np.array(ImageOps.exif_transpose(Image.open(BytesIO(data))).convert("RGB"))


def layered(gray: np.ndarray | None, alpha: np.ndarray) -> Image.Image:
    """LA of gray values, RGBA of the four colours without."""
    bands = COLOURS if gray is None else gray[..., None]
    return Image.fromarray(np.concatenate([bands, alpha[..., None]], axis=-1))


def grays(*values: int) -> list[tuple[int, int, int]]:
    return [(value,) * 3 for value in values]


LOSSLESS = {
    "one bit": (Image.fromarray(GRAY > 100), "PNG", {}, grays(0, 0, 255, 255)),
    "gray": (Image.fromarray(GRAY), "PNG", {}, grays(0, 85, 170, 255)),
    "gray, one value clear": (Image.fromarray(GRAY), "PNG", {"transparency": 85}, grays(0, 255, 170, 255)),
    "gray with alpha": (layered(GRAY, CLEAR_TO_OPAQUE), "PNG", {}, grays(255, 85, 212, 255)),
    "palette": (palette_image(), "PNG", {}, [RED, GREEN, BLUE, DARK]),
    "palette, one entry clear": (palette_image(), "PNG", {"transparency": 1}, [RED, WHITE, BLUE, DARK]),
    "palette with alphas": (
        palette_image(),
        "PNG",
        {"transparency": bytes([0, 255, 128, 255])},
        [WHITE, GREEN, (127, 127, 255), DARK],
    ),
    "palette of a GIF": (palette_image(), "GIF", {}, [RED, GREEN, BLUE, DARK]),
    "palette of a GIF, one entry clear": (palette_image(), "GIF", {"transparency": 1}, [RED, WHITE, BLUE, DARK]),
    "palette as TIFF": (palette_image(), "TIFF", {}, [RED, GREEN, BLUE, DARK]),
    "colour": (Image.fromarray(COLOURS), "PNG", {}, [RED, GREEN, BLUE, DARK]),
    "colour, one colour clear": (Image.fromarray(COLOURS), "PNG", {"transparency": GREEN}, [RED, WHITE, BLUE, DARK]),
    "colour with alpha": (layered(None, CLEAR_TO_OPAQUE), "PNG", {}, [WHITE, GREEN, (127, 127, 255), DARK]),
    "colour with alpha as WebP": (
        layered(None, CLEAR_TO_OPAQUE),
        "WEBP",
        {"lossless": True, "exact": True},
        [WHITE, GREEN, (127, 127, 255), DARK],
    ),
    "CMYK as TIFF": (Image.fromarray(COLOURS).convert("CMYK"), "TIFF", {}, [RED, GREEN, BLUE, DARK]),
    "16 bits as PNG": (Image.fromarray(DEEP.astype(np.uint16)), "PNG", {}, grays(0, 1, 100, 255)),
    "16 bits as TIFF": (Image.fromarray(DEEP.astype(np.uint16)), "TIFF", {}, grays(0, 1, 100, 255)),
    "16 bits as big-endian TIFF": (Image.fromarray(DEEP.astype(">u2")), "TIFF", {}, grays(0, 1, 100, 255)),
    "16 bits as PGM": (Image.fromarray(DEEP.astype(np.int32)), "PPM", {}, grays(0, 1, 100, 255)),
    "32 bits as TIFF": (Image.fromarray(DEEP.astype(np.int32)), "TIFF", {}, grays(0, 1, 100, 255)),
    "BMP": (Image.fromarray(COLOURS), "BMP", {}, [RED, GREEN, BLUE, DARK]),
}


@pytest.mark.parametrize(("image", "kind", "options", "expected"), LOSSLESS.values(), ids=LOSSLESS)
def test_every_mode_becomes_rgb_over_white(image, kind, options, expected):
    pixels = decode(encoded(image, kind, **options))
    assert pixels.dtype == np.uint8
    assert pixels.shape == (1, 4, 3)
    assert [tuple(pixel) for pixel in pixels[0].tolist()] == expected


def test_16_bits_are_scaled_over_the_whole_range_not_clipped():
    ramp = np.arange(0, 65_536, 16, dtype=np.uint16).reshape(64, 64)
    pixels = decode(encoded(Image.fromarray(ramp), "PNG"))
    assert np.abs(pixels[..., 0] - ramp / 257).max() <= 1
    assert np.array_equal(pixels[..., 0], pixels[..., 1])
    assert np.array_equal(pixels[..., 0], pixels[..., 2])


@pytest.mark.parametrize("kind", ["TIFF", "PPM"])
def test_float_pixels_are_refused_by_their_kind(kind):
    data = encoded(Image.fromarray(np.array([[0.0, 0.5, 2.0]], dtype=np.float32)), kind)
    with pytest.raises(BadImageError, match="floating-point"):
        decode(data)


@pytest.mark.parametrize("size", [(61, 47), (16, 16), (1, 1), (3, 90), (2, 5)], ids=str)
@pytest.mark.parametrize(
    "options",
    [
        *({"quality": 30, "subsampling": subsampling} for subsampling in ("4:4:4", "4:2:2", "4:2:0")),
        {"quality": 95},
        {"progressive": True},
        {"keep_rgb": True},
        {"restart_marker_blocks": 1},
    ],
    ids=str,
)
def test_jpeg_pixels_are_pillows_to_the_last_bit(size, options):
    data = encoded(photo(*size), "JPEG", **options)
    assert np.array_equal(decode(data), by_pillow(data))


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_gray_and_cmyk_jpeg_pixels_are_pillows_to_the_last_bit(mode):
    data = encoded(photo(61, 47).convert(mode), "JPEG")
    assert np.array_equal(decode(data), by_pillow(data))


def test_cmyk_jpeg_is_not_inverted():
    data = encoded(Image.new("RGB", (16, 16), (200, 30, 90)).convert("CMYK"), "JPEG", quality=95)
    assert np.abs(decode(data).astype(int) - (200, 30, 90)).max() <= 3


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "gray JPEG", "CMYK JPEG"])
@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_upright_by_every_exif_orientation_as_pillow_turns_it(kind, orientation):
    mode = {"gray JPEG": "L", "CMYK JPEG": "CMYK"}.get(kind, "RGB")
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    data = encoded(photo(23, 17).convert(mode), kind.split()[-1], exif=exif)
    pixels = decode(data)
    assert pixels.shape == ((17, 23, 3) if orientation < 5 else (23, 17, 3))
    assert np.array_equal(pixels, by_pillow(data))


@pytest.mark.parametrize("orientation", [0, 9, 700])
def test_an_orientation_that_does_not_exist_leaves_the_image_as_stored(orientation):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    image = photo(23, 17)
    assert np.array_equal(decode(encoded(image, "PNG", exif=exif)), np.asarray(image))


def test_a_jpeg_with_unreadable_exif_is_still_decoded():
    image = photo(23, 17)
    with_noise = encoded(image, "JPEG", exif=b"Exif\0\0no directory at all")
    assert np.array_equal(decode(with_noise), decode(encoded(image, "JPEG")))


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_the_first_frame_of_an_animation_counts(kind):
    frames = [Image.new("RGB", (3, 2), colour) for colour in (RED, BLUE, GREEN)]
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert Image.open(BytesIO(data)).n_frames == 3
    assert np.array_equal(decode(data), np.broadcast_to(np.uint8(RED), (2, 3, 3)))


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_the_pixels_can_be_written_and_lie_in_one_piece(kind, orientation):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    flags = decode(encoded(photo(23, 17), kind, exif=exif)).flags
    assert flags.writeable
    assert flags.c_contiguous


JPEG_DATA, PNG_DATA = encoded(photo(40, 30), "JPEG"), encoded(photo(40, 30), "PNG")
BROKEN = {
    "empty": (b"", "empty"),
    "text": (b"this is not a photo, whatever its name says\n" * 9, "not an image"),
    "web page": (b"<!DOCTYPE html><html><body>404 Not Found</body></html>", "not an image"),
    "zeros": (bytes(5_000), "not an image"),
    "first bytes of a JPEG": (JPEG_DATA[:4], "not an image"),
    "head of a JPEG": (JPEG_DATA[:300], "truncated"),
    "half a JPEG": (JPEG_DATA[: len(JPEG_DATA) // 2], "truncated"),
    "JPEG without its last bytes": (JPEG_DATA[:-20], "truncated"),
    "half a progressive JPEG": (encoded(photo(40, 30), "JPEG", progressive=True)[:500], "truncated"),
    "signature of a PNG": (PNG_DATA[:8], "not an image"),
    "half a PNG": (PNG_DATA[: len(PNG_DATA) // 2], "truncated"),
    "head of a PNG": (PNG_DATA[:60], "truncated"),
    "half a GIF": (encoded(photo(40, 30), "GIF")[:1_000], "truncated"),
}


@pytest.mark.parametrize(("data", "cause"), BROKEN.values(), ids=BROKEN)
def test_what_is_no_whole_image_is_refused_with_its_cause(data, cause):
    with pytest.raises(BadImageError) as refusal:
        decode(data)
    told = str(refusal.value)
    assert cause in told.lower()
    assert "<_io" not in told  # Pillow's own sentence names the buffer in memory
    assert len(told.splitlines()) == 1


def test_a_header_that_claims_too_many_pixels_is_refused():
    header = b"IHDR" + struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    with pytest.raises(BadImageError, match="3600000000 pixels"):
        decode(PNG_DATA[:8] + chunk + PNG_DATA[33:])


def damaged_copies(whole: bytes, count: int = 150) -> Iterator[bytes]:
    """Copies with one to three flipped bits; every third is cut short."""
    random = np.random.default_rng(8)
    for attempt in range(count):
        copy = bytearray(whole)
        for place in random.integers(len(copy), size=random.integers(1, 4)):
            copy[place] ^= 1 << random.integers(8)
        yield bytes(copy[: random.integers(len(copy))] if attempt % 3 == 0 else copy)


@pytest.mark.parametrize(
    ("kind", "options"),
    [("JPEG", {}), ("JPEG", {"progressive": True}), ("PNG", {}), ("GIF", {}), ("WEBP", {})],
    ids=str,
)
def test_damaged_files_give_an_image_or_a_bad_image_and_nothing_else(kind, options):
    causes = []
    for data in damaged_copies(encoded(photo(40, 30), kind, **options)):
        try:
            pixels = decode(data)
        except BadImageError as error:
            causes.append(str(error))
        else:
            assert pixels.dtype == np.uint8
            assert pixels.ndim == 3
            assert pixels.shape[2] == 3
    assert all(causes)
    assert len(causes) >= 40  # most of the truncated files at least


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_blocks": 1}], ids=str)
def test_a_damaged_jpeg_is_decoded_where_pillow_decodes_it_and_to_the_same_pixels(options):
    decoded = 0
    for data in damaged_copies(encoded(photo(40, 30), "JPEG", **options)):
        try:
            expected = by_pillow(data)
        except Exception:  # noqa: BLE001 - Pillow raises many kinds
            with pytest.raises(BadImageError):
                decode(data)
        else:
            decoded += 1
            assert np.array_equal(decode(data), expected)
    assert decoded >= 20


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize(
    "exif", [b"Exif\x00\x00garbage", b"Exif\x00\x00II*\x00\x08\x00\x00\x00\x10\x00"], ids=["garbage", "cut short"]
)
def test_broken_exif_does_not_make_an_image_unreadable(kind, exif):
    buffer = BytesIO()
    Image.new("RGB", (8, 6), "red").save(buffer, format=kind, exif=exif)
    assert decode(buffer.getvalue()).shape == (6, 8, 3)


def test_postscript_named_like_an_image_is_not_interpreted():
    with pytest.raises(BadImageError, match="not an image of a known format"):
        decode(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n%%EOF\n")


MODES_OF = {
    "JPEG": ("L", "RGB", "CMYK"),
    "PNG": ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"),
    "WEBP": ("RGB", "RGBA"),
    "TIFF": ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "I", "F"),
    "GIF": ("L", "P", "RGB"),
    "BMP": ("1", "L", "P", "RGB"),
}
SIDES = (1, 2, 3, 17, 64, 300)


def generated(random: np.random.Generator) -> tuple[bytes, tuple[int, int] | None]:
    """A file of any format, mode, size and orientation, and the upright (height, width); None where it is cut."""
    kind = str(random.choice(list(MODES_OF)))
    mode = str(random.choice(MODES_OF[kind]))
    width, height = (8000, 3) if random.random() < 0.03 else random.choice(SIDES, 2).tolist()
    picture = photo(width, height, seed=int(random.integers(99)))
    deep = mode in ("I;16", "I", "F")
    image = Image.fromarray(np.asarray(picture.convert("L"))).convert("I") if deep else picture.convert(mode)
    image = image.convert(mode) if deep else image
    orientation = int(random.integers(1, 9)) if kind in ("JPEG", "PNG", "WEBP", "TIFF") else 1
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    data = encoded(image, kind, **({"exif": exif} if orientation > 1 else {}))
    if random.random() < 0.3:
        return data[: random.integers(len(data))], None
    return data, (height, width) if orientation < 5 else (width, height)


@pytest.mark.parametrize("seed", range(8))
def test_any_file_gives_an_upright_image_or_a_cause(seed):
    random = np.random.default_rng(seed)
    whole, refused = 0, []
    for _ in range(60):
        data, shape = generated(random)
        try:
            pixels = decode(data)
        except BadImageError as error:
            refused.append((str(error), shape))
        else:
            whole += 1
            assert pixels.dtype == np.uint8
            assert pixels.shape[2] == 3
            assert shape is None or pixels.shape[:2] == shape
    assert whole >= 30
    for cause, shape in refused:
        assert len(cause.splitlines()) == 1
        assert shape is None or "line" in cause or "floating-point" in cause


class Held(Image.Image):
    """An image whose decoding waits in its midst."""

    def __init__(self):
        super().__init__()
        self.begun, self.goes_on = threading.Event(), threading.Event()

    @property
    def height(self):
        self.begun.set()
        assert self.goes_on.wait(30)
        return 0


def refused(image):
    with pytest.raises(BadImageError, match="no picture"):
        decode_opened(image)


def test_threads_that_decode_at_once_silence_no_warnings_of_others_for_good():
    before = list(warnings.filters)
    images = [Held(), Held()]
    threads = [threading.Thread(target=refused, args=(image,)) for image in images]
    for image, thread in zip(images, threads, strict=True):
        thread.start()
        assert image.begun.wait(30)
    assert warnings.filters[0][:1] == ("ignore",)
    for image, thread in zip(images, threads, strict=True):  # the first to come is the first to leave
        image.goes_on.set()
        thread.join()
    assert warnings.filters == before
