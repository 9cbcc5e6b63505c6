"""What a model said of the images of a split, on disk: all that a report is made of."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitcls import runs
from vitcls.errors import UserError

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
    return run / runs.OUTPUTS / f"{role}.parquet"


def write_outputs(run: Path, outputs: Outputs) -> None:
    """Write them at once, over those of before.

    Args:
        run: the folder.
        outputs: to write.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    def matrix(values: NDArray[Any]) -> Any:
        return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), len(outputs.labels))

    columns = {
        "id": outputs.ids,
        "file": outputs.files,
        "label": matrix(outputs.targets.astype(np.int8)) if outputs.targets.ndim == 2 else outputs.targets,
        "logits": matrix(outputs.logits),
    }
    if outputs.left_out is not None:
        columns["left_out"] = matrix(outputs.left_out)
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
    with runs.at_once(file) as part:
        pq.write_table(pa.table(columns).replace_schema_metadata({_RECORD: json.dumps(record)}), part)


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

        def matrix(column: str) -> NDArray[Any]:
            return table[column].combine_chunks().flatten().to_numpy().reshape(len(table), -1)

        return Outputs(
            record["role"],
            record["task"],
            record["labels"],
            table["id"].to_numpy(),
            table["file"].to_pylist(),
            matrix("label").astype(np.bool_) if record["task"] == "multilabel" else table["label"].to_numpy(),
            matrix("logits"),
            record["temperature"],
            np.array(record["thresholds"]),
            record["about"],
            matrix("left_out") if "left_out" in table.column_names else None,
        )
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
        raise UserError(f"{file} is damaged ({error}); delete it, and run the verb that wrote it again.") from error
