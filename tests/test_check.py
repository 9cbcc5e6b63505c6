import base64
import json
import random
import re
import shutil

import numpy as np
import pytest
from PIL import Image

from tests.conftest import draw_split
from vitcls.check.duplicates import exact_groups, near_pairs
from vitcls.check.reading import FACTS, read_facts
from vitcls.check.signature import signature
from vitcls.data.decode import decode
from vitcls.data.rows import FileImages


@pytest.fixture
def check(vitcls, tiny_vit, tmp_path):
    """Check data with the tiny ViT: (exit status, what was said, check.json)."""

    def run(*words):
        folder = tmp_path / "check"
        arguments = ("--model.checkpoint", tiny_vit, "--data.num_workers=0", "--output", folder)
        status, out, err = vitcls("check", *words, *arguments)
        assert "Traceback" not in err
        assert status in (0, 1), err
        assert "<svg" in (folder / "check.html").read_text(encoding="utf-8")
        return status, out, json.loads((folder / "check.json").read_text())

    return run


@pytest.fixture
def photos(tmp_path, colours):
    shutil.copytree(colours, tmp_path / "photos")
    return tmp_path / "photos"


def pairs(found) -> set[frozenset[str]]:
    return {frozenset("/".join(image["name"].split("/")[-3:]) for image in group) for group in found}


def test_sound_data_is_said_to_be_sound(check, photos):
    status, out, found = check("--data.dataset", photos)
    assert status == 0
    assert found["problems"] == {}
    assert "nothing is wrong" in out
    assert {role: split["images"] for role, split in found["splits"].items()} == {
        "train": 54,
        "validation": 6,
        "test": 21,
    }
    assert found["splits"]["train"]["modes"] == {"RGB": 54}


def test_broken_files_are_named_and_training_would_fail(check, photos):
    cut, text = photos / "train" / "red" / "000.jpg", photos / "test" / "blue" / "001.jpg"
    cut.write_bytes(cut.read_bytes()[:400])
    text.write_text("no image")
    status, out, found = check("--data.dataset", photos)
    assert status == 1
    assert "training would fail: 1 of the train images cannot be decoded" in out
    assert {image["name"].split("/")[-1]: image["cause"] for image in found["corrupt"]}.keys() == {"000.jpg", "001.jpg"}
    assert check("--data.dataset", photos, "--data.on_bad_image=skip")[0] == 0
    assert check("--data.dataset", photos, "--data.on_bad_image=skip", "--fail_on=leakage,corrupt")[0] == 1


def test_copies_are_told_by_where_they_lie(check, photos):
    draw_split(photos / "validation", 3, seed=3)
    red = photos / "train" / "red"
    shutil.copy(red / "001.jpg", red / "copy.jpg")
    shutil.copy(red / "002.jpg", photos / "test" / "red" / "leaks.jpg")
    shutil.copy(red / "003.jpg", photos / "train" / "blue" / "other.jpg")
    status, _, found = check("--data.dataset", photos, "--fail_on=leakage")
    assert status == 1
    assert pairs(found["leakage"]) == {frozenset({"train/red/002.jpg", "test/red/leaks.jpg"})}
    assert pairs(found["conflicts"]) == {frozenset({"train/red/003.jpg", "train/blue/other.jpg"})}
    assert pairs(found["duplicates"]) == {
        frozenset({"train/red/001.jpg", "train/red/copy.jpg"}),
        frozenset({"train/red/003.jpg", "train/blue/other.jpg"}),
    }


def test_class_names_are_no_formulas(check, photos):
    (photos / "train" / "red").rename(photos / "train" / "$5_{ $")
    check("--data.dataset", photos, "--data.train_split=train")


def test_what_was_asked_for_wrongly_is_a_sentence(refuses, photos, tiny_vit):
    words = ("check", "--model.checkpoint", tiny_vit, "--data.dataset", photos)
    assert "did you mean 'leakage'" in refuses(*words, "--fail_on=leak")
    assert "--config RUN/config.yaml" in refuses(*words, "--ckpt_path=run")
    assert "did you mean --data.dataset" in refuses("check", "--data.datasett", photos)


def test_the_config_of_a_run_can_be_checked(vitcls, check, fit_words, tmp_path):
    assert vitcls(*fit_words)[0] == 0
    assert check("--config", tmp_path / "runs" / "run" / "config.yaml")[0] == 0


def test_an_unknown_key_of_a_configuration_is_told_in_a_sentence(refuses, tmp_path):
    (tmp_path / "bad.yaml").write_text("runname: a\n")
    assert "There is no option --runname (did you mean --run_name?)" in refuses(
        "check", "--config", tmp_path / "bad.yaml"
    )


def test_data_without_a_test_split_is_checked(check, photos):
    shutil.rmtree(photos / "test")
    assert "nothing to test on" in check("--data.dataset", photos)[2]["test_not_read"]


def test_names_of_files_cannot_write_into_the_page(check, photos, tmp_path):
    (photos / "train" / "red" / "<b>x<b>.jpg").write_bytes(b"")
    check("--data.dataset", photos)
    page = (tmp_path / "check" / "check.html").read_text(encoding="utf-8")
    assert "<b>x" not in page
    assert "&lt;b&gt;x" in page


@pytest.mark.parametrize("shape", [(1, 300), (7, 5), (128, 128), (500, 333)])
def test_a_mirrored_picture_has_the_mirrored_hash(shape):
    pixels = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    one, mirrored, thumb = signature(pixels)
    other, back, turned = signature(np.ascontiguousarray(pixels[:, ::-1]))
    assert (other, back) == (mirrored, one)
    assert np.array_equal(turned, thumb[:, ::-1])


def read(files):
    return read_facts(FileImages(files), 0, lambda _: None)


def test_facts_of_an_image_cost_at_most_300_bytes():
    assert FACTS.itemsize == 243


def test_planted_copies_of_real_photos_are_all_found_and_nothing_else(shared, tmp_path):
    """As they are, re-encoded, shrunk, enlarged, as PNG, mirrored, brightened by a little."""
    sources = sorted((shared / "data" / "flowers5" / "test").rglob("*.jpg"))[::2]
    files = [shutil.copy(file, tmp_path / f"{number:03}.jpg") for number, file in enumerate(sources)]
    chosen = random.Random(0).sample(range(len(files)), 35)
    planted = set()
    for number, source in enumerate(chosen):
        image = Image.open(files[source]).convert("RGB")
        copy = tmp_path / f"copy{number:02}.{'png' if number % 7 == 4 else 'jpg'}"
        kind = number % 7
        if kind == 0:
            shutil.copy(files[source], copy)
        elif kind in (1, 4):
            image.save(copy, quality=50) if kind == 1 else image.save(copy)
        elif kind in (2, 3):
            scale = 0.5 if kind == 2 else 1.7
            image.resize((round(image.width * scale), round(image.height * scale))).save(copy, quality=85)
        elif kind == 5:
            image.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(copy, quality=85)
        else:
            image.point(lambda value: min(255, round(1.03 * value))).save(copy, quality=85)
        files.append(copy)
        planted.add((source, len(files) - 1))
    facts = read(files).facts
    exact = {tuple(group.tolist()) for group in exact_groups(facts)}
    assert exact == {pair for pair in planted if (pair[1] - len(sources)) % 7 == 0}
    found = set(near_pairs(facts)) | exact
    assert planted <= found
    assert len(found - planted) <= 1, "photos of this set that do look alike"


def sheet(page: str) -> dict[str, list[bytes]]:
    """The sample pictures of each class on a page, as files."""
    found = re.findall(r'<img src="data:image/jpeg;base64,([^"]+)" alt="(\w+), sample \d+"', page)
    pictures: dict[str, list[bytes]] = {}
    for data, name in found:
        pictures.setdefault(name, []).append(base64.b64decode(data))
    return pictures


def test_the_pages_sheet_shows_each_class_as_the_network_sees_it_in_training(check, photos, tmp_path):
    shown = {}
    for augment in ("none", "strong"):
        _, _, found = check("--data.dataset", photos, f"--data.augment={augment}")
        shown[augment] = sheet((tmp_path / "check" / "check.html").read_text(encoding="utf-8"))
        assert found["epoch"]["network_seconds"] > 0
    assert list(shown["none"]) == ["blue", "green", "red"]
    for place, name in enumerate(("red", "green", "blue")):
        pixels = decode(shown["none"][name][0])
        assert pixels.shape == (32, 32, 3)
        assert pixels.mean((0, 1)).argmax() == place
    assert all(len(shown["none"][name]) == len(shown["strong"][name]) > 1 for name in shown["none"])
    assert shown["none"] != shown["strong"]
