"""Image files that are damaged, or that only pretend to be what they are."""

import io
import random
import struct
import zipfile
import zlib

from PIL import Image

KINDS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000")


def whole(kind, draw):
    """A small image of a kind."""
    size = draw.randint(1, 90), draw.randint(1, 90)
    content = io.BytesIO()
    Image.frombytes("RGB", size, draw.randbytes(3 * size[0] * size[1])).save(content, kind)
    return content.getvalue()


def flipped(draw):
    """With some bits the other way round."""
    content = bytearray(whole(draw.choice(KINDS), draw))
    for _ in range(draw.choice((1, 3, 30))):
        place = draw.randrange(min(len(content), draw.choice((64, 1 << 20))))
        content[place] ^= 1 << draw.randrange(8)
    return bytes(content)


def cut(draw):
    """Ending too early."""
    content = whole(draw.choice(KINDS), draw)
    return content[: draw.randrange(len(content))]


def joined(draw):
    """The beginning of one kind and the rest of another."""
    one, other = (whole(kind, draw) for kind in draw.sample(KINDS, 2))
    return one[: draw.choice((2, 4, 8, 16, 64))] + other[draw.choice((0, 4, 16)) :]


def polyglot(draw):
    """An image that is something else as well: an archive, a script, a page."""
    content = io.BytesIO(whole(draw.choice(KINDS), draw))
    content.seek(0, io.SEEK_END)
    if draw.random() < 0.5:
        with zipfile.ZipFile(content, "a") as archive:
            archive.writestr("x.pkl", b"cos\nsystem\n(S'true'\ntR.")
        return content.getvalue()
    return content.getvalue() + draw.choice((b"<script>alert(1)</script>", b"%!PS\n(/etc/passwd) run", b"<?php ?>"))


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width, height, data=b"", extra=b""):
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + extra + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


def bomb(draw):
    """Few bytes that would become many."""
    zeros = bytes(1 << 20)
    return draw.choice(
        (
            lambda: png(60_000, 60_000, zeros),
            lambda: png(2**31 - 1, 2**31 - 1),
            lambda: png(6_000, 6_000, zeros),
            lambda: png(4, 4, zeros * 8),  # more pixels than it says
            lambda: png(4, 4, bytes(52), chunk(b"zTXt", b"a\0\0" + zlib.compress(zeros * 64))),
            lambda: png(4, 4, bytes(52), chunk(b"iCCP", b"a\0\0" + zlib.compress(zeros * 64))),
            lambda: b"BM" + struct.pack("<IHHIIiiHHIIiiII", 90, 0, 0, 54, 40, 50_000, 50_000, 1, 24, 0, 0, 0, 0, 0, 0),
            lambda: b"P6 90000 90000 255\n",
            lambda: b"GIF89a" + struct.pack("<HHBBB", 65535, 65535, 0, 0, 0) + b"\x2c" + bytes(9),
        )
    )()


def line(draw):
    """Too long for a picture."""
    content = io.BytesIO()
    long = draw.choice((50_000, 20_000))
    Image.new("RGB", draw.choice(((1, long), (long, 1)))).save(content, draw.choice(("PNG", "BMP", "TIFF")))
    return content.getvalue()


WAYS = (flipped, flipped, flipped, cut, cut, joined, polyglot, bomb, line)


def mutated(seed):
    """A file for each number, always the same."""
    draw = random.Random(seed)
    return WAYS[seed % len(WAYS)](draw)
