"""What processes of a predict write meanwhile, and what it takes in memory to make one file of it."""

import json
import tracemalloc
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from lightning.pytorch import Callback

from vitcls.callbacks import PredictionWriter, predictions
from vitcls.predictions.formats import FORMATS
from vitcls.predictions.options import PredictOptions
from vitcls.predictions.parts import Part, Parts
from vitcls.predictions.rows import Shape
from vitcls.types import BadImage, Predictions

SHAPE = Shape(["a", "b", "c"], "multiclass", 2, scores=True, width=16)


def batch(ids: list[int], bad: list[int] | None = None) -> Predictions:
    """The class of a row is its id modulo three, its embedding the id."""
    random = torch.rand(len(ids), 3, generator=torch.Generator().manual_seed(sum(ids)))
    random[torch.arange(len(ids)), torch.tensor(ids) % 3] += 2
    best = random.softmax(-1).topk(2)
    return Predictions(
        ids=torch.tensor(ids),
        scores=best.values,
        classes=best.indices,
        present=None,
        probabilities=random.softmax(-1),
        embeddings=torch.tensor(ids)[:, None].expand(-1, 16).float(),
        bad=[BadImage(f"{number}.jpg", number, "broken") for number in bad or []],
    )


def write(parts: Parts, batches: list[list[int]], attempt: int = 1, rank: int = 0, shape: Shape = SHAPE) -> None:
    parts.folder.mkdir(exist_ok=True)
    part = Part(parts.file(attempt, rank), shape)
    for ids in batches:
        part.append(batch(ids), [f"{number}.jpg" for number in ids])
    part.close()


def test_rows_of_several_parts_come_once_and_in_order(tmp_path):
    parts = Parts(tmp_path / "out.csv")
    assert parts.attempt() == 1
    assert parts.done().tolist() == []
    write(parts, [[0, 2], [4, 6]])
    write(parts, [[1, 3]], rank=1)
    assert parts.attempt() == 2
    write(parts, [[5, 6], [7]], attempt=2)  # 6 was done again
    assert parts.done().tolist() == [*range(8)]
    rows = list(parts.rows(SHAPE))
    assert [row.id for row in rows] == [*range(8)]
    for row in rows:
        assert row.file == f"{row.id}.jpg"
        assert row.label == row.best[0][0] == "abc"[row.id % 3]
        assert row.embedding is not None
        assert set(row.embedding.tolist()) == {row.id}


def test_images_that_could_not_be_decoded_stand_among_the_others(tmp_path):
    parts = Parts(tmp_path / "out.csv")
    parts.folder.mkdir()
    part = Part(parts.file(1, 0), SHAPE)
    part.append(batch([1, 4], bad=[3, 0]), ["1.jpg", "4.jpg"])
    part.append(Predictions(**{**batch([5], bad=[6]), "ids": torch.empty(0, dtype=torch.int64)}), [])
    part.close()
    assert [(row.id, row.label, row.error) for row in parts.rows(SHAPE)] == [
        (0, "", "broken"),
        (1, "b", ""),
        (3, "", "broken"),
        (4, "b", ""),
        (6, "", "broken"),
    ]


def test_whatever_the_end_of_a_part_lacks_the_batches_before_it_are_whole(tmp_path):
    parts = Parts(tmp_path / "out.csv")
    write(parts, [[0, 1], [2], [3, 4, 5]])
    (file,) = parts.files()
    whole = file.read_bytes()
    found = []
    for length in [*range(0, len(whole), 13), len(whole) - 1, len(whole)]:
        file.write_bytes(whole[:length])
        found.append(parts.done().tolist())
    assert all(len(one) <= len(other) for one, other in pairwise(found))
    assert [list(one) for one in dict.fromkeys(map(tuple, found))] == [[], [0, 1], [0, 1, 2], [0, 1, 2, 3, 4, 5]]


@pytest.mark.parametrize("suffix", FORMATS)
def test_the_memory_does_not_grow_with_the_rows(tmp_path, monkeypatch, suffix):
    """Of 600 and of 2,400 rows, in two parts, until they are a file."""
    monkeypatch.setattr(predictions, "_AT_ONCE", 100)
    peaks = [peak(tmp_path / f"{rows}{suffix}", rows) for rows in (600, 600, 2400)]  # the first warms up
    assert peaks[2] < 1.2 * peaks[1]


def test_what_is_done_is_known_without_the_embeddings_in_memory(tmp_path):
    parts = Parts(tmp_path / "out.csv")
    write(parts, [[*range(n, n + 50)] for n in range(0, 5000, 50)], shape=SHAPE)
    size = sum(file.stat().st_size for file in parts.files())
    before, pool = pa.default_memory_pool(), pa.proxy_memory_pool(pa.default_memory_pool())
    pa.set_memory_pool(pool)
    try:
        assert len(parts.done()) == 5000
    finally:
        pa.set_memory_pool(before)
    assert 0 < pool.max_memory() < size / 10


class IndicesKept(Callback):
    """Writes down how many indices of images Lightning still has after a predict."""

    def __init__(self, file: str) -> None:
        self.file = Path(file)

    def on_predict_end(self, trainer, pl_module) -> None:
        (loader,) = trainer.predict_loop._combined_loader.flattened
        batches = loader.batch_sampler.seen_batch_indices
        self.file.write_text(f"{len(batches)} {sum(map(len, batches))}")


def test_lightning_does_not_keep_the_indices_of_all_images(vitcls, trained_run, colours, tmp_path):
    callback = {"class_path": f"{__name__}.IndicesKept", "init_args": {"file": str(tmp_path / "kept")}}
    words = ["--data.predict", colours / "test", "--data.num_workers=0", "--data.eval_batch_size=7"]
    words += ["--output", tmp_path / "o.csv", "--trainer.callbacks+", json.dumps(callback)]
    assert vitcls("predict", "--ckpt_path", trained_run, *words)[0] == 0
    assert (tmp_path / "kept").read_text() == "3 0"


def peak(output, rows: int) -> int:
    writer = PredictionWriter(PredictOptions(output))
    for rank in (0, 1):
        ids = np.arange(rank, rows, 2)
        write(writer._parts, [batch.tolist() for batch in np.array_split(ids, rows // 40)], rank=rank)
    writer._shape = SHAPE
    tracemalloc.start()
    writer._finish()
    found = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return found
