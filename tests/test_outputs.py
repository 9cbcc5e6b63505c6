"""What a model said, written and read again."""

import dataclasses

import numpy as np
import pytest
import torch

from vitcls.errors import UserError
from vitcls.outputs import Outputs, file_of, read_outputs, write_outputs
from vitcls.pictures import read_pictures, write_pictures


def outputs_of(logits, targets, labels=None, task="multiclass", role="test", temperature=1.5, **about):
    """Outputs of made-up answers."""
    k = logits.shape[1]
    return Outputs(
        role,
        task,
        labels or [f"class {c}" for c in range(k)],
        np.arange(len(logits)) * 2,
        [f"/photos/{n}.jpg" for n in range(len(logits))],
        targets,
        logits.astype(np.float32),
        temperature,
        np.full(k, 0.4),
        {"step": 7, "source": role, "fingerprint": "f", "unreadable": 0, **about},
    )


def random_outputs(task="multiclass", images=60, classes=4, seed=0, **how):
    random = np.random.default_rng(seed)
    logits = random.normal(0, 2, (images, classes))
    if task == "multilabel":
        return outputs_of(logits, random.random((images, classes)) < 1 / (1 + np.exp(-logits)), task=task, **how)
    noisy = logits + random.gumbel(size=logits.shape)
    return outputs_of(logits, noisy.argmax(axis=1), **how)


@pytest.mark.parametrize("task", ["multiclass", "multilabel"])
@pytest.mark.parametrize("classes", [1, 4])
def test_they_come_back_as_they_were(task, classes, tmp_path):
    written = random_outputs(task, classes=classes, labels=["ä", "b/c", "d|e", "$f$"][:classes])
    if classes == 1:
        written = dataclasses.replace(written, left_out=written.logits[::-1].copy())
    write_outputs(tmp_path, written)
    found = read_outputs(tmp_path, "test")
    for field in dataclasses.fields(Outputs):
        np.testing.assert_array_equal(getattr(found, field.name), getattr(written, field.name))
    assert found.targets.dtype == written.targets.dtype
    assert [file.name for file in file_of(tmp_path, "test").parent.iterdir()] == ["test.parquet"]


def test_probabilities_are_torchs():
    outputs = random_outputs()
    scaled = torch.from_numpy(outputs.logits).double() / 1.5
    np.testing.assert_allclose(outputs.probabilities(), scaled.softmax(-1).numpy(), atol=1e-12)
    several = random_outputs("multilabel", temperature=1.0)
    expected = torch.from_numpy(several.logits).double().sigmoid().numpy()
    np.testing.assert_allclose(several.probabilities(), expected, atol=1e-12)
    huge = outputs_of(np.array([[1e4, -1e4]]), np.array([0]))
    assert huge.probabilities().tolist() == [[1, 0]]


def test_none_are_none(tmp_path):
    assert read_outputs(tmp_path, "test") is None
    assert read_pictures(tmp_path, "test") == {"image": {}, "attribution": {}}


def test_pictures_come_back(tmp_path):
    write_outputs(tmp_path, random_outputs())
    write_pictures(tmp_path, "test", {"image": {4: b"jpeg", 2: b"other"}, "attribution": {2: b"looked"}})
    assert read_pictures(tmp_path, "test") == {"image": {4: b"jpeg", 2: b"other"}, "attribution": {2: b"looked"}}
    write_pictures(tmp_path, "test", {"image": {}})
    assert read_pictures(tmp_path, "test") == {"image": {}, "attribution": {}}


@pytest.mark.parametrize("content", [b"", b"no parquet at all", None])
def test_a_damaged_file_is_named(content, tmp_path):
    write_outputs(tmp_path, random_outputs())
    file = file_of(tmp_path, "test")
    file.write_bytes(file.read_bytes()[:-100] if content is None else content)
    with pytest.raises(UserError, match=r"test\.parquet is damaged"):
        read_outputs(tmp_path, "test")
    file.with_suffix(".pictures.parquet").write_bytes(b"no parquet")
    with pytest.raises(UserError, match="is damaged"):
        read_pictures(tmp_path, "test")
