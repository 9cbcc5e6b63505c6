"""What the processes of a predict have written so far: Arrow streams in a folder beside the output.

One format for all outputs: every batch is appended as it is, numbers take 4 bytes, and what a killed process left
half-written is at the end of its stream and is known by that.
"""

import heapq
import os
import shutil
from collections.abc import Iterator, Sequence
from itertools import compress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from vitcls.predictions.rows import Row, Shape
from vitcls.types import BadImage, Predictions

RECORD = "inputs.json"  # of what the parts are
_LISTS = ("classes", "scores", "present", "probabilities", "embedding")


class Part:
    """Appends the batches of one process; the file is whole after each.

    Args:
        file: to write.
        shape: of its rows.
    """

    def __init__(self, file: Path, shape: Shape) -> None:
        self._schema = _schema(shape)
        self._sink = pa.OSFile(str(file), "wb")  # unbuffered: what is written is the system's, whatever kills this
        self._stream = pa.ipc.new_stream(self._sink, self._schema)

    def append(self, prediction: Predictions, names: Sequence[str]) -> None:
        """Write a batch, in the order of its ids.

        Args:
            prediction: of the batch.
            names: (B,) of its images that could be decoded.
        """
        good, bad = len(names), prediction["bad"]
        ids = np.array([*prediction["ids"].tolist(), *(image.id for image in bad)], dtype=np.int64)
        order = np.argsort(ids)
        columns: dict[str, Any] = {
            "id": ids[order],
            "file": [_files(names, bad)[i] for i in order],
            "error": [([""] * good + [image.cause for image in bad])[i] for i in order],
        }
        values = _values(prediction)
        for name in self._schema.names[len(columns) :]:
            columns[name] = _lists(values[name], good, order, self._schema.field(name).type)
        self._stream.write_batch(pa.record_batch(columns, schema=self._schema))

    def close(self) -> None:
        """No more batches; a second time does nothing."""
        if not self._sink.closed:
            self._stream.close()
            self._sink.close()


class Parts:
    """The parts of one output, of all processes and of all attempts.

    Args:
        output: the file that they become.
    """

    def __init__(self, output: Path) -> None:
        self.folder = output.with_name(f".{output.name}.parts")
        self.record = self.folder / RECORD
        self.record_of_output = output.with_name(f".{output.name}.{RECORD}")

    def files(self) -> list[Path]:
        """All parts."""
        return sorted(self.folder.glob("*.arrow"))

    def attempt(self) -> int:
        """The number of the next attempt: none appends to the parts of another, whose end may be half a batch."""
        return 1 + max((int(file.name.partition("-")[0]) for file in self.files()), default=0)

    def file(self, attempt: int, rank: int) -> Path:
        """Where a process writes."""
        return self.folder / f"{attempt}-{rank}.arrow"

    def done(self) -> NDArray[np.int64]:
        """The ids that are in the parts, ascending."""
        # Copied, since a view of them would keep the embeddings of the whole batch in memory.
        found = [batch.column("id").to_numpy().copy() for file in self.files() for batch in _batches(file)]
        return np.unique(np.concatenate(found)) if found else np.empty(0, np.int64)

    def rows(self, shape: Shape, unknown: str = "", below: float = 0.0) -> Iterator[Row]:
        """Every row once, by id; a batch of each part is in memory at a time.

        Args:
            shape: of the rows.
            unknown: the label where the best probability is below `below`.
            below: see there.
        """
        last = -1
        parts = (_rows(file, shape, unknown, below) for file in self.files())
        for row in heapq.merge(*parts, key=lambda row: row.id):
            if row.id != last:
                yield row
            last = row.id

    def remove(self) -> None:
        """Delete the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)


def _schema(shape: Shape) -> pa.Schema:
    numbers = {"classes": (pa.int32(), shape.top), "scores": (pa.float32(), shape.top)}
    if shape.task == "multilabel":
        numbers["present"] = (pa.bool_(), len(shape.labels))
    if shape.scores:
        numbers["probabilities"] = (pa.float32(), len(shape.labels))
    if shape.width:
        numbers["embedding"] = (pa.float32(), shape.width)
    # A path may hold bytes that are no UTF-8, which Arrow's strings may not.
    fields: list[tuple[str, Any]] = [("id", pa.int64()), ("file", pa.binary()), ("error", pa.string())]
    return pa.schema([*fields, *((name, pa.list_(kind, size)) for name, (kind, size) in numbers.items())])


def _files(names: Sequence[str], bad: Sequence[BadImage]) -> list[bytes]:
    return [os.fsencode(name) for name in (*names, *(image.name for image in bad))]


def _values(prediction: Predictions) -> dict[str, Any]:
    found = (prediction[name] for name in ("classes", "scores", "present", "probabilities", "embeddings"))
    return {name: None if value is None else value.cpu().numpy() for name, value in zip(_LISTS, found, strict=True)}


def _lists(values: Any, good: int, order: NDArray[np.int64], kind: pa.FixedSizeListType) -> pa.Array:
    """(B, n) values as a column, zeros for the images that could not be decoded."""
    filled = np.zeros((len(order), kind.list_size), dtype=kind.value_type.to_pandas_dtype())
    if good:
        filled[:good] = values
    return pa.FixedSizeListArray.from_arrays(pa.array(filled[order].ravel(), kind.value_type), kind.list_size)


def _batches(file: Path) -> Iterator[pa.RecordBatch]:
    """The whole batches of a part."""
    with pa.OSFile(str(file), "rb") as source:
        try:
            stream = pa.ipc.open_stream(source)
            while True:
                yield stream.read_next_batch()
        except (StopIteration, pa.ArrowInvalid, OSError):  # the last two: half a batch of a killed process
            return


def _rows(file: Path, shape: Shape, unknown: str, below: float) -> Iterator[Row]:
    labels = shape.labels
    for batch in _batches(file):
        lists = {name: _matrix(batch, name) for name in _LISTS if name in batch.schema.names}
        known = zip(*(batch.column(name).to_pylist() for name in ("id", "file", "error")), strict=True)
        for i, (number, name, error) in enumerate(known):
            if error:
                yield Row(number, os.fsdecode(name), "", [], None, None, None, error)
                continue
            best = [
                (labels[c], s) for c, s in zip(lists["classes"][i].tolist(), lists["scores"][i].tolist(), strict=True)
            ]
            present = list(compress(labels, lists["present"][i])) if "present" in lists else None
            label = unknown if best[0][1] < below else best[0][0]
            probabilities, embedding = (lists[n][i] if n in lists else None for n in ("probabilities", "embedding"))
            yield Row(number, os.fsdecode(name), label, best, present, probabilities, embedding, "")


def _matrix(batch: pa.RecordBatch, name: str) -> NDArray[Any]:
    column = batch.column(name)
    return column.flatten().to_numpy(zero_copy_only=False).reshape(len(column), -1)
