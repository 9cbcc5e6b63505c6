"""Small stand-ins that go through the real loading code: a tiny ViT on disk, folders of drawn images."""

import logging
import os
import shutil
import signal
from collections.abc import Callable, Iterator

# Before any import of these libraries: tests never wait for a network.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

from pathlib import Path

# First, as in the program: `typing` keeps one order of int and float for a process, and where another library has
# said float first, --trainer.limit_test_batches=1 would mean all batches (test_package.py holds the program to it).
import lightning.pytorch  # noqa: F401
import numpy as np
import pytest
import torch
from PIL import Image
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

from vitcls.__main__ import main

SHARED = Path(__file__).parents[2] / "shared"
CLASSES = ("blue", "green", "red")
TINY = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
TINY |= {"image_size": 32, "patch_size": 8}


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    torch.set_num_threads(1)  # tiny networks are slower with more, and cost up to five times as much


@pytest.fixture(autouse=True)
def _still_one_thread(_one_thread):
    """Also after a test that took more."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory):
    """Arrow files of the tests' datasets go where pytest cleans up."""
    import datasets

    datasets.config.HF_DATASETS_CACHE = tmp_path_factory.mktemp("hf_datasets")


@pytest.fixture(scope="session")
def tiny_vit(tmp_path_factory) -> Path:
    """A ViT of 30 thousand weights with an image processor, as a transformers folder without class names."""
    folder = tmp_path_factory.mktemp("tiny_vit")
    torch.manual_seed(0)
    ViTForImageClassification(ViTConfig(**TINY, num_labels=7)).save_pretrained(folder)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def colours(tmp_path_factory) -> Path:
    """train/ (20 a class) and test/ (7 a class) of JPEGs whose class is their colour."""
    folder = tmp_path_factory.mktemp("colours")
    draw_split(folder / "train", 20, seed=1)
    draw_split(folder / "test", 7, seed=2)
    return folder


def draw_split(folder: Path, per_class: int, seed: int, classes: tuple[str, ...] = CLASSES) -> None:
    """Draw noisy images, 40 to 60 pixels wide, one folder a class; the class is the colour."""
    random = np.random.default_rng(seed)
    for name in classes:
        (folder / name).mkdir(parents=True)
        channel = CLASSES[::-1].index(name) if name in CLASSES else 0
        for number in range(per_class):
            pixels = random.integers(0, 120, (*random.integers(40, 60, 2), 3), dtype=np.uint8)
            pixels[..., channel] += 100
            Image.fromarray(pixels).save(folder / name / f"{number:03}.jpg", quality=95)


def embed(folder: Path, file: Path, names: list[str], image: str = "image", label: str = "label") -> None:
    """Write the images of class folders as one parquet file with embedded bytes; `names` is the classes' order."""
    import datasets

    files = sorted(folder.rglob("*.jpg"))
    columns = {
        image: [{"bytes": file.read_bytes(), "path": None} for file in files],
        label: [file.parent.name for file in files],
    }
    kind = datasets.ClassLabel(names=names) if names else datasets.Value("string")
    features = datasets.Features({image: datasets.Image(), label: kind})
    file.parent.mkdir(exist_ok=True)
    datasets.Dataset.from_dict(columns, features=features).to_parquet(file)


@pytest.fixture
def vitcls(capfd) -> Iterator[Callable[..., tuple[int, str, str]]]:
    """Run a command line in this process: (exit status, standard output, standard error)."""

    def run(*words: object) -> tuple[int, str, str]:
        capfd.readouterr()
        said = [str(word) for word in words]
        if said[:1] in (["fit"], ["test"]) and not any(word.startswith(("--report", "--help")) for word in said):
            said.append("--report=false")  # a report takes two seconds: its own tests ask for it
        status = main(said)
        out, err = capfd.readouterr()
        return status, out, err

    yield run
    logging.getLogger("vitcls").handlers = []  # they write to this test's captured output


@pytest.fixture
def refuses(vitcls):
    """The one sentence with which a command line is refused."""

    def refused(*words: object) -> str:
        status, _, err = vitcls(*words)
        told = [line for line in err.splitlines() if not line.startswith("warning: ")]
        assert status == 2
        assert "Traceback" not in err
        assert len(told) == 1, err
        assert told[0].startswith("vitcls: ")
        return told[0]

    return refused


@pytest.fixture(scope="session")
def shared() -> Path:
    """Real photos and weights; tests that want them skip where there are none."""
    if not SHARED.is_dir():
        pytest.skip("no real photos and weights beside the repository")
    return SHARED


@pytest.fixture
def fit_words(tiny_vit, colours, tmp_path) -> list[str]:
    """The words of a short fit of the tiny ViT on the colours, its run folder below tmp_path/runs."""
    options = {
        "model.checkpoint": tiny_vit,
        "model.lr": 1e-3,
        "data.dataset": colours,
        "data.batch_size": 16,
        "data.num_workers": 0,
        "trainer.default_root_dir": tmp_path / "runs",
        "trainer.max_epochs": 2,
        "trainer.accelerator": "cpu",
        "trainer.enable_progress_bar": "false",
        "report": "false",
    }
    return ["fit", *(f"--{key}={value}" for key, value in options.items())]


@pytest.fixture(scope="session")
def trained_run(tiny_vit, colours, tmp_path_factory) -> Path:
    """The run folder of a short fit; for reading only."""
    root = tmp_path_factory.mktemp("trained")
    words = ["--model.lr=3e-3", "--data.num_workers=0", "--trainer.max_epochs=4", "--trainer.accelerator=cpu"]
    words += [f"--trainer.default_root_dir={root}", "--trainer.enable_progress_bar=false", "--report=false"]
    assert main(["fit", f"--model.checkpoint={tiny_vit}", f"--data.dataset={colours}", *words]) == 0
    return root / "run"


@pytest.fixture(scope="session")
def exported_run(trained_run, tmp_path_factory) -> Path:
    """The same as an ONNX graph, which needs no torch; for reading only."""
    folder = tmp_path_factory.mktemp("exported") / "onnx"
    assert main(["export", str(trained_run), "--output", str(folder)]) == 0
    return folder


@pytest.fixture(scope="session")
def _trained_before() -> dict[tuple[str, ...], Path]:
    """The runs that `trained` has made, by their words; copies, which no test changes."""
    return {}


@pytest.fixture
def trained(vitcls, fit_words, tmp_path, tmp_path_factory, _trained_before) -> Callable[..., Path]:
    """The run folder of `fit_words` and more, below tmp_path/runs; the same words are trained only once, then copied.

    For tests of what can be done with a run. Its config.yaml names the place of the first.
    """

    def run(*words: str) -> Path:
        place = tmp_path / "runs" / "run"
        if words in _trained_before:
            return Path(shutil.copytree(_trained_before[words], place))
        status, _, err = vitcls(*fit_words, *words)
        assert status == 0, err
        _trained_before[words] = Path(shutil.copytree(place, tmp_path_factory.mktemp("trained") / "run"))
        return place

    return run


@pytest.fixture(scope="session", autouse=True)
def _interruptible():
    """Also where a shell started the tests in its background, which leaves SIGINT ignored."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def keeps_sigint():
    """Lightning leaves SIGINT ignored after an interrupted training."""
    before = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, before)


def draw_scenes(folder: Path, count: int, seed: int) -> list[tuple[str, list[str]]]:
    """Draw noisy images in which each colour fills a quarter or does not occur: (file, its colours) of each."""
    random = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    scenes = []
    for number in range(count):
        colours = [name for name in CLASSES if random.random() < 0.4]
        pixels = random.integers(0, 100, (48, 48, 3), dtype=np.uint8)
        for name, quarter in zip(colours, random.permutation(4), strict=False):
            top, left = 24 * (quarter // 2), 24 * (quarter % 2)
            pixels[top : top + 24, left : left + 24, CLASSES[::-1].index(name)] += 150
        Image.fromarray(pixels).save(folder / f"{number:03}.jpg", quality=95)
        scenes.append((f"{folder.name}/{number:03}.jpg", colours))
    return scenes


def list_scenes(file: Path, scenes: list[tuple[str, list[str]]], delimiter: str = "|") -> Path:
    """Write scenes as a CSV with one string of labels for each."""
    rows = [f"{name},{delimiter.join(colours)}" for name, colours in scenes]
    file.write_text("\n".join(["path,labels", *rows]))
    return file


@pytest.fixture(scope="session")
def scenes(tmp_path_factory) -> Path:
    """train.csv (240 images) and test.csv (40), whose column `labels` holds colours between `|`."""
    folder = tmp_path_factory.mktemp("scenes")
    list_scenes(folder / "train.csv", draw_scenes(folder / "train", 240, seed=1))
    list_scenes(folder / "test.csv", draw_scenes(folder / "test", 40, seed=2))
    return folder


def multilabel_options(tiny_vit: Path, scenes: Path, root: Path, epochs: int = 24) -> list[str]:
    """The words of a short fit of the tiny ViT on the scenes, its run folder below `root`."""
    options = {
        "model.checkpoint": tiny_vit,
        "model.task": "multilabel",
        "model.lr": 1e-3,
        "data.train_files": scenes / "train.csv",
        "data.test_files": scenes / "test.csv",
        "data.label_delimiter": "|",
        "data.validation_fraction": 0.2,
        "data.augment": "none",
        "data.batch_size": 16,
        "data.num_workers": 0,
        "trainer.default_root_dir": root,
        "trainer.max_epochs": epochs,
        "trainer.accelerator": "cpu",
        "trainer.enable_progress_bar": "false",
        "report": "false",
    }
    return ["fit", *(f"--{key}={value}" for key, value in options.items())]
