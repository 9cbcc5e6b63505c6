"""`bench predict`: images a second of `predict`, against transformers' pipeline and the bare forward pass."""

import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jsonargparse import ArgumentParser, Namespace
from lightning.pytorch import Trainer, seed_everything
from PIL import Image
from rich.console import Console
from rich.progress import track
from rich.table import Table
from transformers import AutoImageProcessor, ViTImageProcessor, pipeline

from vitcls.callbacks import MemoryAdvice, PredictionWriter
from vitcls.cli import TRAINER_DEFAULTS
from vitcls.data.datamodule import ImageDataModule
from vitcls.data.inputs import images_at
from vitcls.errors import check_range
from vitcls.machine import machine
from vitcls.models.classifier import ViTClassifier
from vitcls.models.network import from_architecture, quiet_transformers
from vitcls.predictions.options import DEFAULT_OUTPUT, PredictOptions
from vitcls.trainer_options import with_progress_bar

# Where no network is named: ViT-Tiny, with random weights, for as many classes as ImageNet has.
TINY = {"model_type": "vit", "hidden_size": 192, "num_hidden_layers": 12, "num_attention_heads": 3}
TINY |= {"intermediate_size": 768}
_CLASSES = 1000
_SIDES = (500, 375)  # of the photos that are drawn where none are named, as those of ImageNet
_LIBRARIES = ("lightning", "transformers")
PREDICT, PIPELINE, FORWARD = "predict", "transformers.pipeline", "forward pass"


@dataclass(frozen=True)
class Predicting:
    """One way to come to answers.

    Attributes:
        way: what it is called.
        speeds: images a second, of each round.
        times: how many times as fast `predict` was in the same round, the median.
    """

    way: str
    speeds: list[float]
    times: float


def predict_parser() -> ArgumentParser:
    """The options of `bench predict`."""
    parser = ArgumentParser(
        prog="python -m vitcls bench predict",
        description="Images a second of predict, from the files to the finished CSV; of transformers' "
        "image-classification pipeline at its defaults, on the same files; and of the network's forward pass alone, on "
        "tensors that are ready, in batches and precision of predict.",
        exit_on_error=False,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--checkpoint",
        type=str | None,
        default=None,
        help="fine-tuned, such as model/ of a run (default: ViT-Tiny with random weights).",
    )
    parser.add_argument(
        "--predict", type=str | None, default=None, help="photos, as --data.predict (default: drawn ones)."
    )
    parser.add_argument("--images", type=int, default=256, help="how many of them at most.")
    parser.add_argument("--batch_size", type=int, default=32, help="of predict and of the forward pass.")
    parser.add_argument("--num_workers", type=int | None, default=None, help="as data.num_workers.")
    parser.add_argument("--precision", type=str, default="32-true", help="of predict and of the forward pass.")
    parser.add_argument("--rounds", type=int, default=5, help="how often each of the three, in turn.")
    parser.add_argument("--output", type=str | None, default=None, help="JSON file to write the figures to.")
    return parser


def bench_predict(options: Namespace) -> dict[str, Any]:
    """Measure, print a table, give the figures.

    Raises:
        UserError: a number out of range, or photos or a network that cannot be had.
    """
    check_range("batch_size", options.batch_size, options.batch_size >= 1, "at least 1")
    known = ("32-true", "bf16-mixed")
    check_range("precision", repr(options.precision), options.precision in known, " or ".join(known))
    seed_everything(0, verbose=False)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        files = photos_in(folder / "photos", options)
        checkpoint = options.checkpoint or _tiny(folder / "tiny")
        rounds = _measured(_ways(options, checkpoint, files, folder), len(files), options.rounds)
    found = [_compared(way, rounds) for way in rounds]
    print("; ".join(f"{name} {value}" for name, value in machine(*_LIBRARIES).items()))
    Console().print(_table(found, options, len(files)))
    said = {name: options[name] for name in ("checkpoint", "batch_size", "precision", "num_workers")}
    return {"machine": machine(*_LIBRARIES), **said, "images": len(files), "ways": [asdict(one) for one in found]}


def _ways(options: Namespace, checkpoint: str, files: list[str], folder: Path) -> dict[str, Callable[[], object]]:
    model = ViTClassifier(checkpoint=checkpoint)
    predict = predict_way(options, model, folder)
    predict()  # makes the network
    processor = AutoImageProcessor.from_pretrained(checkpoint)
    classify = pipeline("image-classification", model=model.network, image_processor=processor)
    return {PREDICT: predict, PIPELINE: lambda: classify(files), FORWARD: _forward(options, model, len(files))}


def predict_way(options: Namespace, model: ViTClassifier, folder: Path) -> Callable[[], object]:
    """The verb without its start-up: the data is opened, workers start, the output is written, each time anew.

    Args:
        options: `batch_size`, `num_workers` and `precision`.
        model: that predicts.
        folder: in which `photos/` are, and the output will be.
    """
    sizes = {"batch_size": options.batch_size, "num_workers": options.num_workers}

    def predict() -> object:
        writer = PredictionWriter(PredictOptions(folder / DEFAULT_OUTPUT))
        trainer = Trainer(
            **{**TRAINER_DEFAULTS, "default_root_dir": str(folder)},  # type: ignore[arg-type]
            callbacks=[*with_progress_bar([], shown=True), writer, MemoryAdvice()],
            precision=options.precision,
            logger=False,
            enable_checkpointing=False,
            devices=1,
        )
        data = ImageDataModule(predict=str(folder / "photos"), **sizes)
        return trainer.predict(model, data, return_predictions=False)

    return predict


def _forward(options: Namespace, model: ViTClassifier, images: int) -> Callable[[], object]:
    """The network alone, on as many images."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    side = model.image_spec.size
    batches = [torch.randn(b, 3, side, side, device=device) for b in _sizes(images, options.batch_size)]

    @torch.inference_mode()
    def forward() -> object:
        network = model.network.to(device).eval()
        with torch.autocast(device.type, torch.bfloat16, enabled=options.precision == "bf16-mixed"):
            logits = [network(pixel_values=batch).logits for batch in batches]
        if device.type == "cuda":
            torch.cuda.synchronize()
        return logits

    return forward


def _sizes(images: int, batch: int) -> list[int]:
    return [min(batch, images - start) for start in range(0, images, batch)]


def _measured(ways: dict[str, Callable[[], object]], images: int, rounds: int) -> dict[str, list[float]]:
    """Images a second of each way, of each round; the first round, which warms up, is left out."""
    speeds: dict[str, list[float]] = {way: [] for way in ways}
    for number in track(range(rounds + 1), "rounds", console=Console(stderr=True), transient=True):
        for way, run in ways.items():
            start = time.perf_counter()
            run()
            if number:
                speeds[way].append(images / (time.perf_counter() - start))
    return speeds


def _compared(way: str, speeds: dict[str, list[float]]) -> Predicting:
    ratios = [predict / other for predict, other in zip(speeds[PREDICT], speeds[way], strict=True)]
    return Predicting(way, speeds[way], statistics.median(ratios))


def _tiny(folder: Path) -> str:
    with quiet_transformers():
        from_architecture(dict(TINY), [f"class_{i}" for i in range(_CLASSES)]).save_pretrained(folder)
    ViTImageProcessor().save_pretrained(folder)
    return str(folder)


def photos_in(folder: Path, options: Namespace) -> list[str]:
    """Make a folder of links to the photos that are named, or of drawn ones: smooth, so that JPEG takes what it takes.

    Args:
        folder: to make.
        options: `predict`, where the photos are, if anywhere, and `images`, how many at most.

    Returns:
        its files.

    Raises:
        UserError: there are none, or they lie in a table.
    """
    folder.mkdir()
    if options.predict is None:
        for number in range(options.images):
            coarse = np.random.default_rng(number).integers(0, 256, (24, 32, 3), dtype=np.uint8)
            photo = Image.fromarray(coarse).resize(_SIDES, Image.Resampling.BICUBIC)
            photo.save(folder / f"{number:05}.jpg", quality=90)
    else:
        images = images_at(options.predict)
        check_range("predict", options.predict, images.are_files, "image files, and no table with the images inside")
        for number in range(min(options.images, len(images))):
            file = Path(images.name(number)).absolute()
            (folder / f"{number:05}{file.suffix}").symlink_to(file)
    return sorted(str(file) for file in folder.iterdir())


def _table(found: list[Predicting], options: Namespace, images: int) -> Table:
    table = Table(
        title=f"{images} images, batches of {options.batch_size}, {options.precision}, {options.rounds} rounds in turn"
    )
    table.add_column("way", no_wrap=True)
    for heading in ("images a second: median", "least", "most", "predict is times as fast: median"):
        table.add_column(heading, justify="right")
    for one in found:
        spread = (statistics.median(one.speeds), min(one.speeds), max(one.speeds))
        table.add_row(one.way, *(f"{value:.1f}" for value in spread), f"{one.times:.3f}")
    return table
