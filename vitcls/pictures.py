"""Small pictures of images, as bytes of JPEG, kept beside what a model said of them."""

from collections.abc import Mapping
from pathlib import Path

from vitcls.errors import UserError
from vitcls.outputs import file_of
from vitcls.runs import at_once

# What a picture shows: the image itself, or where the network looked.
KINDS = ("image", "attribution")
Pictures = dict[str, dict[int, bytes]]  # kind -> id of the image -> JPEG


def write_pictures(run: Path, role: str, pictures: Mapping[str, Mapping[int, bytes]]) -> None:
    """Write those of a role at once, over those of before."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [(kind, number, jpeg) for kind, of_kind in pictures.items() for number, jpeg in of_kind.items()]
    kinds, numbers, jpegs = zip(*rows, strict=True) if rows else ((), (), ())
    columns = pa.array(kinds, pa.string()), pa.array(numbers, pa.int64()), pa.array(jpegs, pa.binary())
    with at_once(_file_of(run, role)) as part:
        pq.write_table(pa.table(list(columns), names=["kind", "id", "jpeg"]), part, compression="none")


def read_pictures(run: Path, role: str) -> Pictures:
    """Those of a role; none where none were kept.

    Raises:
        UserError: the file is damaged.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    found: Pictures = {kind: {} for kind in KINDS}
    file = _file_of(run, role)
    if not file.is_file():
        return found
    try:
        for row in pq.read_table(file).to_pylist():
            found.setdefault(row["kind"], {})[row["id"]] = row["jpeg"]
    except (OSError, KeyError, pa.ArrowException) as error:
        raise UserError(f"{file} is damaged ({error}); delete it, and the report has no pictures.") from error
    return found


def _file_of(run: Path, role: str) -> Path:
    return file_of(run, role).with_suffix(".pictures.parquet")
