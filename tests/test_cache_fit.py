"""Whole commands with `--data.cache`."""

import json

import pytest

from vitcls.data.cache import CAUSES, caches
from vitcls.data.rows import TableImages


@pytest.mark.parametrize("kind", ["jpeg", "raw"])
def test_a_fit_and_a_test_take_their_images_from_it(vitcls, fit_words, tmp_path, kind, monkeypatch):
    words = [*fit_words, f"--data.cache={kind}", "--trainer.max_epochs=1"]
    status, out, err = vitcls(*words)
    assert status == 0, err
    assert out.count(f"cache ({kind}): ") == 2  # training and validation
    monkeypatch.setattr(TableImages, "read", lambda *_: pytest.fail("read the original"))
    status, out, err = vitcls(*words)
    assert (status, out.count("cache (")) == (0, 0), err
    monkeypatch.undo()
    out = vitcls("test", "--ckpt_path", tmp_path / "runs" / "run")[1]
    assert out.count(f"cache ({kind}): 21 images") == 1
    assert "test/accuracy" in out
    assert json.loads(next(caches().glob(f"{kind}-*/{CAUSES}")).read_text()) == {}


def test_a_kind_that_is_none_is_refused(refuses, fit_words):
    told = refuses(*fit_words, "--data.cache=png")
    assert "--data.cache is 'png'; it must be one of 'none', 'jpeg', 'raw'" in told


def test_the_run_that_builds_a_cache_trains_like_those_that_find_it(vitcls, fit_words, tmp_path, monkeypatch):
    import datasets

    from vitcls import runs

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "fresh")
    losses = []
    for name in ("builds", "finds"):
        words = ("--data.cache=raw", "--data.num_workers=1", f"--run_name={name}")
        assert vitcls(*fit_words, *words)[0] == 0
        losses.append(runs.read_metrics(tmp_path / "runs" / name)["validation"]["val/loss"])
    assert losses[0] == losses[1]
