"""Which image files a path means."""

from pathlib import Path

from vitcls.errors import UserError

# What Pillow reads and people keep photos in.
IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".avif"}
)


def image_files(path: str) -> list[Path]:
    """The file itself, or every file below a folder that is named like an image, sorted by path.

    Raises:
        UserError: nothing there, or no image in the folder.
    """
    start = Path(path).expanduser()
    if start.is_file():
        return [start]
    if not start.is_dir():
        raise UserError(f"There is no file or folder {path!r} to predict (--data.predict).")
    files = sorted(f for f in start.rglob("*") if f.suffix.lower() in IMAGE_SUFFIXES and f.is_file())
    if not files:
        raise UserError(
            f"The folder {path!r} (--data.predict) holds no image: none of its files ends in "
            f"{', '.join(sorted(IMAGE_SUFFIXES))}."
        )
    return files
