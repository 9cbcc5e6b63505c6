"""The files that predict writes: CSV, JSON lines, parquet."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from vitcls.predictions.rows import Row, Shape

DELIMITER = "|"  # of a CSV, between the names in the column `labels`
CLASSES = b"labels"  # key of a parquet file's metadata: the names of the classes of `scores`, as JSON


class Format(Protocol):
    """A file that is being written.

    Args:
        file: to write.
        shape: of the rows.
    """

    def __init__(self, file: Path, shape: Shape) -> None: ...

    def write(self, rows: Sequence[Row]) -> None:
        """Append rows."""

    def close(self) -> None:
        """The file is whole afterwards."""


class CSVFormat:
    """Columns: id, file, label, score (of the best class, 0..1), then label_2, score_2, ... of the next best.

    Of multilabel data there is also `labels`, before the best class: the names of those that reach their threshold,
    joined by `|`, which in a name is written with a backslash before it. All probabilities are in columns called
    `score:` and the class, an embedding in `embedding_0`, `embedding_1`, ... The last column is `error`.
    """

    def __init__(self, file: Path, shape: Shape) -> None:
        self._file = file.open("w", newline="", encoding="utf-8", errors="surrogateescape")
        self._writer = csv.writer(self._file)
        columns = _columns(shape)
        self._empty = [""] * (len(columns) - 3)
        self._writer.writerow(columns)

    def write(self, rows: Sequence[Row]) -> None:
        """Append rows."""
        self._writer.writerows(self._fields(row) for row in rows)

    def close(self) -> None:
        """The file is whole afterwards."""
        self._file.close()

    def _fields(self, row: Row) -> list[Any]:
        if row.error:
            return [row.id, row.file, *self._empty, row.error]
        several = [] if row.present is None else [DELIMITER.join(map(_escaped, row.present))]
        best = [row.label, f"{row.best[0][1]:.6f}"]
        for label, score in row.best[1:]:
            best += [label, f"{score:.6f}"]
        scores = [] if row.probabilities is None else [f"{score:.6f}" for score in row.probabilities.tolist()]
        features = [] if row.embedding is None else [f"{value:.7g}" for value in row.embedding.tolist()]
        return [row.id, row.file, *several, *best, *scores, *features, ""]


class JSONLinesFormat:
    """An object for each row: id, file, label, score, `top` (the best classes), error (null where there is none).

    Of multilabel data also `labels`, a list; if asked for, `scores`, an object of all classes, and `embedding`, a list.
    Below --abstain, `label` is `unknown`, and `top` names the classes as ever.
    """

    def __init__(self, file: Path, shape: Shape) -> None:
        self._file = file.open("w", encoding="utf-8")
        self._labels = shape.labels

    def write(self, rows: Sequence[Row]) -> None:
        """Append rows."""
        self._file.writelines(_json(self._object(row)) + "\n" for row in rows)

    def close(self) -> None:
        """The file is whole afterwards."""
        self._file.close()

    def _object(self, row: Row) -> dict[str, Any]:
        if row.error:
            return {"id": row.id, "file": row.file, "label": None, "score": None, "error": row.error}
        found: dict[str, Any] = {"id": row.id, "file": row.file}
        if row.present is not None:
            found["labels"] = row.present
        found |= {"label": row.label, "score": round(row.best[0][1], 6)}
        found["top"] = [{"label": label, "score": round(score, 6)} for label, score in row.best]
        if row.probabilities is not None:
            scores = (round(score, 6) for score in row.probabilities.tolist())
            found["scores"] = dict(zip(self._labels, scores, strict=True))
        if row.embedding is not None:
            found["embedding"] = [float(f"{value:.7g}") for value in row.embedding.tolist()]
        return {**found, "error": None}


class ParquetFormat:
    """The columns of the CSV, typed; `labels` is a list of strings.

    `scores` is a list of all probabilities in the order of the classes that the key `labels` of the schema's metadata
    names, as JSON; `embedding` is a list. What an image that cannot be decoded has not is null. Bytes of a path that
    are no UTF-8 are written as backslash, x and two digits.
    """

    def __init__(self, file: Path, shape: Shape) -> None:
        self._shape = shape
        self._schema = _parquet_schema(shape)
        self._writer = pq.ParquetWriter(file, self._schema)

    def write(self, rows: Sequence[Row]) -> None:
        """Append rows as a group."""
        columns: dict[str, list[Any]] = {name: [] for name in self._schema.names}
        for row in rows:
            fields = self._fields(row)
            for name, column in columns.items():
                column.append(fields.get(name))
        self._writer.write_table(pa.table(columns, schema=self._schema))

    def close(self) -> None:
        """The file is whole afterwards."""
        self._writer.close()

    def _fields(self, row: Row) -> dict[str, Any]:
        file = row.file.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
        found: dict[str, Any] = {"id": row.id, "file": file, "error": row.error or None}
        if row.error:
            return found
        for place, (label, score) in enumerate(row.best, 1):
            found |= dict(zip(_place(place), (label, score), strict=True))
        return found | {
            "label": row.label,
            "labels": row.present,
            "scores": row.probabilities,
            "embedding": row.embedding,
        }


FORMATS: dict[str, type[Format]] = {".csv": CSVFormat, ".jsonl": JSONLinesFormat, ".parquet": ParquetFormat}


def _place(place: int) -> tuple[str, str]:
    """The columns of the best class (1), the next best (2), ..."""
    return ("label", "score") if place == 1 else (f"label_{place}", f"score_{place}")


def _columns(shape: Shape) -> list[str]:
    several = ["labels"] if shape.task == "multilabel" else []
    best = [name for place in range(1, shape.top + 1) for name in _place(place)]
    scores = [f"score:{label}" for label in shape.labels] if shape.scores else []
    return ["id", "file", *several, *best, *scores, *(f"embedding_{i}" for i in range(shape.width)), "error"]


def _parquet_schema(shape: Shape) -> pa.Schema:
    fields: list[tuple[str, Any]] = [("id", pa.int64()), ("file", pa.string())]
    if shape.task == "multilabel":
        fields.append(("labels", pa.list_(pa.string())))
    for place in range(1, shape.top + 1):
        fields += zip(_place(place), (pa.string(), pa.float32()), strict=True)
    if shape.scores:
        fields.append(("scores", pa.list_(pa.float32())))
    if shape.width:
        fields.append(("embedding", pa.list_(pa.float32())))
    return pa.schema([*fields, ("error", pa.string())], metadata={CLASSES: json.dumps(shape.labels)})


def _escaped(name: str) -> str:
    return name.replace(DELIMITER, "\\" + DELIMITER)


def _json(found: dict[str, Any]) -> str:
    line = json.dumps(found, ensure_ascii=False)
    try:
        line.encode()
    except UnicodeEncodeError:  # a path with bytes that are no UTF-8, which JSON has ASCII words for
        return json.dumps(found)
    return line
