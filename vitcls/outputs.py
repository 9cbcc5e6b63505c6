"""What a model said of the images of a split, on disk: all that a report is made of."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitcls.errors import UserError

OUTPUTS = "outputs"  # folder of a run
ROLES = ("train", "validation", "test")
_RECORD = b"vitcls"


@dataclass(frozen=True)
class Outputs:
    """The answers of a model to the images of a split that could be read.

    Attributes:
        role: `train`, `validation` or `test`.
        task: `multiclass` or `multilabel`.
        labels: names of the K classes, in output order.
        ids: (N,) int64 rows of the source, ascending.
        files: (N,) names of the images, for a person.
        targets: (N,) int64 class indices; multilabel: (N, K) bool.
        logits: (N, K) float32.
        temperature: what the logits are divided by before they become probabilities; 1 for multilabel.
        thresholds: (K,) float64 of the probabilities, for multilabel.
        about: plain facts: `checkpoint`, `step`, `source`, `fingerprint`, `unreadable`, `asked`, of how many `rows`.
        left_out: (N, K) float32 scores of training images by a head that has not seen their labels; None elsewhere.
    """

    role: str
    task: str
    labels: list[str]
    ids: NDArray[np.int64]
    files: list[str]
    targets: NDArray[Any]
    logits: NDArray[np.float32]
    temperature: float
    thresholds: NDArray[np.float64]
    about: dict[str, Any]
    left_out: NDArray[np.float32] | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def probabilities(self, temperature: float | None = None) -> NDArray[np.float64]:
        """(N, K) float64 in 0..1; of the saved temperature unless another is given."""
        scaled = self.logits.astype(np.float64) / (self.temperature if temperature is None else temperature)
        if self.task == "multilabel":
            return np.exp(-np.logaddexp(0.0, -scaled))
        scaled -= scaled.max(axis=1, keepdims=True)
        odds = np.exp(scaled)
        return odds / odds.sum(axis=1, keepdims=True)


def file_of(run: Path, role: str) -> Path:
    """Where the outputs of a role lie."""
    return run / OUTPUTS / f"{role}.parquet"


def write_outputs(run: Path, outputs: Outputs) -> None:
    """Write them at once, over those of before.

    Args:
        run: the folder.
        outputs: to write.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    several = outputs.targets.ndim == 2
    width = len(outputs.labels)
    of_several = pa.array(list(outputs.targets.astype(np.int8)), pa.list_(pa.int8())) if several else None
    columns = {
        "id": outputs.ids,
        "file": outputs.files,
        "label": of_several if several else outputs.targets,
        "logits": pa.FixedSizeListArray.from_arrays(pa.array(outputs.logits.reshape(-1)), width),
    }
    if outputs.left_out is not None:
        columns["left_out"] = pa.FixedSizeListArray.from_arrays(pa.array(outputs.left_out.reshape(-1)), width)
    record = {
        "role": outputs.role,
        "task": outputs.task,
        "labels": outputs.labels,
        "temperature": outputs.temperature,
        "thresholds": outputs.thresholds.tolist(),
        "about": outputs.about,
    }
    file = file_of(run, outputs.role)
    file.parent.mkdir(exist_ok=True)
    part = file.with_name(f".{file.name}.part")
    pq.write_table(pa.table(columns).replace_schema_metadata({_RECORD: json.dumps(record)}), part)
    part.replace(file)


def read_outputs(run: Path, role: str) -> Outputs | None:
    """The outputs of a role; None where there are none.

    Raises:
        UserError: the file is damaged.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    file = file_of(run, role)
    if not file.is_file():
        return None
    try:
        table = pq.read_table(file)
        record = json.loads(table.schema.metadata[_RECORD])
        labels = table["label"].combine_chunks()
        several = pa.types.is_list(labels.type)
        targets = np.array(labels.to_pylist(), np.bool_) if several else labels.to_numpy()
        rows = len(table)

        def matrix(column: str) -> NDArray[np.float32]:
            return table[column].combine_chunks().flatten().to_numpy().reshape(rows, -1)

        return Outputs(
            record["role"],
            record["task"],
            record["labels"],
            table["id"].to_numpy(),
            table["file"].to_pylist(),
            targets.reshape(rows, -1) if several else targets,
            matrix("logits"),
            record["temperature"],
            np.array(record["thresholds"]),
            record["about"],
            matrix("left_out") if "left_out" in table.column_names else None,
        )
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
        raise UserError(f"{file} is damaged ({error}); delete it, and run the verb that wrote it again.") from error
