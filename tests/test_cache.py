import logging
import multiprocessing
import os
import pickle
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from tests.conftest import draw_split, embed
from vitcls.data import cache_building
from vitcls.data.cache import Shrinking, cache_name, shrinking_for
from vitcls.data.cache_building import cached, shrink
from vitcls.data.choice import SourceChoice
from vitcls.data.preprocess import ImageSpec
from vitcls.data.roles import Roles, RowChoice
from vitcls.data.rows import ImageRows, TableImages
from vitcls.errors import BadImageError, UserError
from vitcls.types import BadImage

HALF = (0.5, 0.5, 0.5)
SPEC = ImageSpec(32, 32, "squash", "bilinear", HALF, HALF)
SIDE = 24  # smaller than any of the drawn images
KINDS = ("jpeg", "raw")


@pytest.fixture
def photos(tmp_path) -> Path:
    """Two classes of three files, which a test may change."""
    draw_split(tmp_path / "photos", 3, seed=5, classes=("blue", "red"))
    return tmp_path / "photos"


def split_of(folder):
    return Roles(SourceChoice(train_dir=str(folder)), RowChoice(0.34, 0, None, None)).fit()[0]


@pytest.fixture
def root(tmp_path) -> Path:
    return tmp_path / "caches"


def left_in(root):
    return sorted(re.sub(r"-[0-9a-f]{20}$", "", path.name) for path in root.iterdir())


@pytest.mark.parametrize(
    ("spec", "side"),
    [
        (ImageSpec(224, 224, "squash", "bilinear", HALF, HALF), 256),
        (ImageSpec(224, 256, "crop", "bilinear", HALF, HALF), 256),
        (ImageSpec(224, 288, "crop", "bilinear", HALF, HALF), 288),
        (ImageSpec(384, 384, "squash", "bilinear", HALF, HALF), 439),
    ],
)
def test_the_side_is_what_the_largest_crop_needs(spec, side):
    assert shrinking_for("raw", spec) == Shrinking("raw", side)


@pytest.mark.parametrize(
    ("shape", "small"), [((50, 80), (20, 32)), ((80, 50), (32, 20)), ((15, 80), (15, 80)), ((20, 20), (20, 20))]
)
def test_shrinking_keeps_the_aspect_ratio_and_never_enlarges(shape, small):
    pixels = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    assert shrink(pixels, 20).shape == (*small, 3)


def test_shrinking_is_pillows_bilinear():
    pixels = np.random.default_rng(0).integers(0, 256, (50, 80, 3), dtype=np.uint8)
    expected = np.asarray(Image.fromarray(pixels).resize((32, 20), Image.Resampling.BILINEAR))
    assert np.abs(shrink(pixels, 20).astype(int) - expected).max() <= 1  # torch rounds its weights otherwise


@pytest.mark.parametrize("workers", [0, 2])
def test_raw_pixels_are_the_shrunk_images_in_their_order(photos, root, workers):
    split = split_of(photos)
    images, kept = TableImages(split), cached(split, Shrinking("raw", SIDE), workers, root)
    assert len(kept) == len(images) == 4
    for position in range(4):
        assert np.array_equal(kept.pixels(position), shrink(images.pixels(position), SIDE))
        assert (kept.name(position), kept.id(position)) == (images.name(position), images.id(position))


def test_jpegs_are_near_the_shrunk_images(photos, root):
    split = split_of(photos)
    kept = cached(split, Shrinking("jpeg", SIDE), 0, root)
    for position in range(4):
        expected = shrink(TableImages(split).pixels(position), SIDE)
        assert kept.pixels(position).shape == expected.shape
        assert np.abs(kept.pixels(position).astype(int) - expected).mean() < 6  # of noise; of a photo, 1


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_read_can_be_written_to_without_changing_the_cache(photos, root, kind):
    kept = cached(split_of(photos), Shrinking(kind, SIDE), 0, root)
    before = kept.pixels(0).copy()
    torch.from_numpy(kept.pixels(0)).zero_()  # also: no warning about memory that is read-only
    assert np.array_equal(kept.pixels(0), before)


def test_a_worker_gets_no_copy_of_the_file(photos, root):
    kept = cached(split_of(photos), Shrinking("raw", SIDE), 0, root)
    pixels = kept.pixels(2)
    sent = pickle.dumps(kept)
    assert sum(path.stat().st_size for path in root.glob("*/images.bin")) > 4 * SIDE * SIDE * 3 - 1
    assert len(sent) < len(pickle.dumps(TableImages(split_of(photos)))) + 2000
    assert np.array_equal(pickle.loads(sent).pixels(2), pixels)


@pytest.mark.parametrize("kind", KINDS)
def test_a_bad_image_stays_one_with_its_cause(photos, root, kind):
    (photos / "blue" / "001.jpg").write_bytes(b"no image")
    split = split_of(photos)
    kept = cached(split, Shrinking(kind, SIDE), 0, root)
    rows = [ImageRows(images, SPEC.eval_transform) for images in (TableImages(split), kept)]
    plain, from_cache = ([row[i] for i in range(4)] for row in rows)
    assert [item for item in plain if isinstance(item, BadImage)] == [
        item for item in from_cache if isinstance(item, BadImage)
    ]
    assert sum(isinstance(item, BadImage) for item in from_cache) == 1


def test_the_cause_is_that_of_when_it_was_made(photos, root):
    file = photos / "blue" / "001.jpg"
    whole = file.read_bytes()
    for bad in photos.rglob("*.jpg"):
        bad.write_bytes(b"")
    kept = cached(split_of(photos), Shrinking("raw", SIDE), 0, root)
    for bad in photos.rglob("*.jpg"):
        bad.write_bytes(whole)  # whoever opens the data again has another cache
    with pytest.raises(BadImageError, match="the file is empty"):
        kept.pixels(0)


def test_nothing_but_bad_images_can_be_kept(photos, root):
    for file in photos.rglob("*.jpg"):
        file.write_bytes(b"")
    kept = cached(split_of(photos), Shrinking("raw", SIDE), 0, root)
    with pytest.raises(BadImageError, match="the file is empty"):
        kept.pixels(0)


def test_a_file_that_could_not_be_opened_is_asked_for_again(photos, root, monkeypatch):
    split = split_of(photos)

    def fails(self, position):
        raise OSError("the network is away")

    with monkeypatch.context() as patch:
        patch.setattr(TableImages, "read", fails)
        kept = cached(split, Shrinking("raw", SIDE), 0, root)
        with pytest.raises(OSError, match="the network is away"):
            kept.pixels(0)
    assert kept.pixels(0).shape == TableImages(split).pixels(0).shape


def test_it_is_built_once(photos, root, monkeypatch):
    split = split_of(photos)
    cached(split, Shrinking("raw", SIDE), 0, root)
    monkeypatch.setattr(cache_building, "_build", lambda *_: pytest.fail("built again"))
    cached(split_of(photos), Shrinking("raw", SIDE), 0, root)
    assert left_in(root) == ["raw-24"]


def test_the_name_says_what_it_was_made_from(photos, tmp_path):
    split, raw = split_of(photos), Shrinking("raw", SIDE)
    names = {cache_name(split, raw), cache_name(split, Shrinking("jpeg", SIDE)), cache_name(split, Shrinking("raw", 9))}
    names.add(cache_name(split.limited(2, seed=0), raw))
    file = Path(TableImages(split)._table[0]["image"]["path"])
    status = file.stat()
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    names.add(cache_name(split, raw))
    file.write_bytes(b"other")
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    names.add(cache_name(split, raw))
    file.unlink()
    names.add(cache_name(split, raw))
    assert len(names) == 7


def test_a_table_with_other_pictures_inside_has_another_cache(photos, tmp_path):
    draw_split(tmp_path / "other", 3, seed=6, classes=("blue", "red"))
    names = set()
    for folder in (photos, tmp_path / "other"):
        file = tmp_path / f"{folder.name} in a table" / "t.parquet"
        embed(folder, file, ["blue", "red"])
        split = Roles(SourceChoice(train_files=str(file)), RowChoice(0.34, 0, None, None)).fit()[0]
        names |= {cache_name(rows, Shrinking("raw", SIDE)) for rows in (split, split.limited(2, seed=0))}
    assert len(names) == 4


def test_the_name_of_a_table_in_memory_is_the_same_in_every_process():
    code = """if True:
        from vitcls.data.choice import SourceChoice
        from vitcls.data.roles import Roles, RowChoice
        from vitcls.data.cache import Shrinking, cache_name
        split = Roles(SourceChoice(dataset="digits"), RowChoice(0.1, 0, None, None)).fit()[0]
        print(cache_name(split, Shrinking("raw", 36)))"""
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    split = Roles(SourceChoice(dataset="digits"), RowChoice(0.1, 0, None, None)).fit()[0]
    assert other.stdout.strip() == cache_name(split, Shrinking("raw", 36))


def _build_in(folder, root):
    cached(split_of(folder), Shrinking("raw", SIDE), 0, root)


def test_two_processes_at_once_make_one_cache(photos, root):
    split_of(photos)
    both = [multiprocessing.get_context("fork").Process(target=_build_in, args=(photos, root)) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join(60)
    assert [process.exitcode for process in both] == [0, 0]
    assert left_in(root) == ["raw-24"]


def test_who_finds_a_lock_waits_and_takes_the_others_cache(photos, root, monkeypatch, caplog):
    split, raw = split_of(photos), Shrinking("raw", SIDE)
    folder = root / cache_name(split, raw)
    elsewhere = cached(split, raw, 0, root.with_name("elsewhere"))
    lock = root / f"{folder.name}.lock"
    lock.mkdir(parents=True)

    def other_finishes(seconds):
        shutil.copytree(root.with_name("elsewhere") / folder.name, folder)
        lock.rmdir()

    monkeypatch.setattr(cache_building.time, "sleep", other_finishes)
    monkeypatch.setattr(cache_building, "_build", lambda *_: pytest.fail("built again"))
    with caplog.at_level(logging.INFO, "vitcls"):
        kept = cached(split, raw, 0, root)
    assert np.array_equal(kept.pixels(1), elsewhere.pixels(1))
    assert "waiting for another process" in caplog.text


def test_a_lock_without_life_is_taken_over_and_one_with_life_is_not(photos, root, monkeypatch):
    split, raw = split_of(photos), Shrinking("raw", SIDE)
    lock = root / f"{cache_name(split, raw)}.lock"
    lock.mkdir(parents=True)
    clock = SimpleNamespace(now=0.0, looks=0)

    def sleep(seconds):
        clock.now += cache_building.STALE * 0.7
        clock.looks += 1
        if clock.looks <= 5:  # alive for long, then dead
            os.utime(lock, ns=(clock.looks, clock.looks))

    monkeypatch.setattr(cache_building.time, "sleep", sleep)
    monkeypatch.setattr(cache_building.time, "monotonic", lambda: clock.now)
    assert len(cached(split, raw, 0, root)) == 4
    assert clock.looks == 8  # five with life, two to be sure, one that finds it gone
    assert left_in(root) == ["raw-24"]


def test_who_builds_shows_life(photos, root, monkeypatch):
    split, raw = split_of(photos), Shrinking("raw", SIDE)
    lock, times = root / f"{cache_name(split, raw)}.lock", []
    add, write = cache_building.CacheIndex.add, cache_building.CacheIndex.write

    def forget(self, *arguments):
        os.utime(lock, ns=(0, 0))
        add(self, *arguments)

    def look(self, folder):
        times.append(lock.stat().st_mtime_ns)
        write(self, folder)

    monkeypatch.setattr(cache_building.CacheIndex, "add", forget)
    monkeypatch.setattr(cache_building.CacheIndex, "write", look)
    cached(split, raw, 0, root)
    assert times[0] > 0


def test_the_loser_of_a_race_uses_the_winners(photos, root, monkeypatch):
    split, raw = split_of(photos), Shrinking("raw", SIDE)
    write = cache_building._write

    def other_is_faster(rows, workers, unfinished, lock):
        write(rows, workers, unfinished, lock)
        shutil.copytree(unfinished, root / cache_name(split, raw))

    monkeypatch.setattr(cache_building, "_write", other_is_faster)
    assert len(cached(split, raw, 0, root)) == 4
    assert left_in(root) == ["raw-24"]


def test_a_build_that_is_interrupted_leaves_nothing(photos, root, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(cache_building.CacheIndex, "write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        cached(split_of(photos), Shrinking("raw", SIDE), 0, root)
    assert left_in(root) == []


def test_what_was_left_unfinished_for_a_day_is_removed(photos, root):
    for name, age in (("old", cache_building.A_DAY + 60), ("young", 60)):
        folder = root / f"{name}.tmp"
        folder.mkdir(parents=True)
        (folder / "images.bin").write_bytes(b"x")
        for path in (folder / "images.bin", folder):
            os.utime(path, (time.time() - age, time.time() - age))
    cached(split_of(photos), Shrinking("raw", SIDE), 0, root)
    assert left_in(root) == ["raw-24", "young.tmp"]


def test_the_size_is_told_before_it_is_written(photos, root, caplog, monkeypatch):
    split = split_of(photos)
    monkeypatch.setattr(cache_building, "_write", lambda *_: pytest.fail("written") if not caplog.messages else None)
    monkeypatch.setattr(cache_building, "_move", lambda *_: (root / cache_name(split, Shrinking("raw", 24))).mkdir())
    monkeypatch.setattr(cache_building, "CachedImages", lambda *_: None)
    sizes = [shrink(TableImages(split).pixels(i), SIDE).nbytes for i in range(4)]
    with caplog.at_level(logging.INFO, "vitcls"):
        cached(split, Shrinking("raw", SIDE), 0, root)
    assert caplog.messages[0].startswith(f"cache (raw): 4 images, about {sum(sizes) / 1e6:.1f} MB, in {root}")


def test_too_little_room_is_a_sentence(photos, root, monkeypatch):
    monkeypatch.setattr(cache_building.shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(UserError, match=r"needs about 0\.0 MB, but .* has 0\.0 MB left; make room, set HF_DATASETS_"):
        cached(split_of(photos), Shrinking("raw", SIDE), 0, root)
    assert left_in(root) == []


def test_a_place_that_cannot_be_written_is_a_sentence(photos, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot be written \(Not a directory\); make room"):
        cached(split_of(photos), Shrinking("raw", SIDE), 0, tmp_path / "file" / "caches")
