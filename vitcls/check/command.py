"""`python -m vitcls check`: reads all images, writes check.html and check.json, says what is wrong."""

import json
import logging
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from jsonargparse import Namespace
from lightning.pytorch import Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from rich.progress import Progress

import vitcls
import vitcls.callbacks  # so that a configuration may name them
from vitcls.check.findings import PROBLEMS, Checked, findings
from vitcls.check.page import write_page
from vitcls.check.reading import read_facts
from vitcls.check.sheet import sample_sheet
from vitcls.check.timing import seconds_per_image
from vitcls.data.datamodule import ImageDataModule
from vitcls.data.loaders import worker_count
from vitcls.data.rows import TableImages
from vitcls.data.splits import Split
from vitcls.errors import UserError, listing, suggestion
from vitcls.models.classifier import ViTClassifier
from vitcls.predictions.options import OPTIONS
from vitcls.runs import DEFAULT_ROOT
from vitcls.trainer_options import QUIET
from vitcls.wording import PARSER_OPTIONS, parsed

log = logging.getLogger(__name__)

FAILED = 1  # exit status where training would fail, or something of --fail_on was found
SHOWN = 3  # findings of a kind that the terminal shows; the page shows more, the JSON all


class CheckCLI(LightningCLI):
    """The options of fit, of which the data's and the model's count, and those of check."""

    def __init__(self, words: list[str]) -> None:
        super().__init__(
            ViTClassifier,
            ImageDataModule,
            run=False,
            args=words,
            seed_everything_default=42,
            parser_kwargs=PARSER_OPTIONS,
            auto_configure_optimizers=False,
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """What check needs besides."""
        parser.add_argument("--run_name", type=str, default="run", help="as in fit; names the folder of the check.")
        parser.add_argument(
            "--output", type=str | None, default=None, help="folder to write to (default: <root>/check-<run_name>)."
        )
        parser.add_argument(
            "--fail_on",
            type=str,
            default="",
            help=f"end with status 1 if one of these is found: {listing(PROBLEMS)}.",
        )
        others = (name for name in OPTIONS if name != "output")
        for name in (
            "ckpt_path",
            "weights_only",
            "lr_find",
            "resume",
            "report",
            *others,
        ):  # stand in the config.yaml of a run
            parser.add_argument(f"--{name}", type=Any, default=None, help="not for check.")

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse; a mistake is one sentence."""
        self.config = parsed(parser, args, parser)

    def instantiate_trainer(self, **_: Any) -> Trainer:
        """None is needed; the data asks for one."""
        return Trainer(accelerator="cpu", **QUIET)


def run_check(words: list[str]) -> int:
    """Check the data of a configuration.

    Args:
        words: of the command line, the verb first.

    Returns:
        0, or 1 where training would fail or something of --fail_on was found.

    Raises:
        UserError: a mistake in the words, or data that cannot be opened.
    """
    cli = CheckCLI(words[1:])
    config = cast(Namespace, cli.config)
    if config.ckpt_path is not None:
        raise UserError("check reads the data of a configuration: say --config RUN/config.yaml instead of --ckpt_path.")
    fail_on = _kinds(config.fail_on)
    folder = _folder(config)
    data, model = cli.datamodule, cli.model
    if data.hparams["streaming"]:
        raise UserError(
            "check reads all images of a table, and --data.streaming keeps none; say --data.streaming false where the "
            "files fit, or check some of them with --data.train_files."
        )
    untested = _open_splits(cli.trainer, data, model)
    checked = _read(data)
    labels = data.labels or []
    found = findings(checked, labels, data.image_spec)
    model.configure_model()
    found |= _of_time(found, data, seconds_per_image(model, data.image_spec, len(labels)))
    found |= {"vitcls": vitcls.__version__, "labels": labels, "size": data.image_spec.size, "test_not_read": untested}
    found["would_fail"] = _would_fail(found, data)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "check.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    write_page(folder / "check.html", found, checked, sample_sheet(data))
    _say(found, folder)
    return FAILED if found["would_fail"] or fail_on & set(found["problems"]) else 0


def _kinds(said: str) -> set[str]:
    kinds = {kind.strip() for kind in said.split(",") if kind.strip()}
    for kind in kinds - set(PROBLEMS):
        raise UserError(
            f"--fail_on names {kind!r}{suggestion(kind, PROBLEMS)}; what can be found is {listing(PROBLEMS)}."
        )
    return kinds


def _folder(config: Namespace) -> Path:
    if config.output is not None:
        return Path(config.output).expanduser()
    return Path(config.trainer.default_root_dir or DEFAULT_ROOT).expanduser() / f"check-{config.run_name}"


def _open_splits(trainer: Trainer, data: ImageDataModule, model: ViTClassifier) -> str | None:
    """Open train, validation and test; why there is no test, if there is none."""
    data.trainer = model.trainer = trainer
    data.hparams["cache"] = "none"  # the files themselves are to be read
    trainer.strategy.connect(model)
    trainer.datamodule = data  # type: ignore[attr-defined]
    trainer.state.fn = "fit"  # type: ignore[assignment]
    data.setup("fit")
    try:
        data.setup("test")
    except UserError as error:
        if any(data.hparams[name] is not None for name in ("test_dir", "test_files", "test_split")):
            raise
        return str(error)
    return None


def _read(data: ImageDataModule) -> dict[str, Checked]:
    workers = worker_count(data.hparams["num_workers"])
    checked = {}
    with Progress(transient=True) as progress:
        for role, split in cast(dict[str, Split], data.splits).items():
            task = progress.add_task(f"reading {role}", total=len(split))
            read = read_facts(TableImages(split), workers, partial(progress.advance, task))
            checked[role] = Checked(split, read)
    return checked


def _of_time(found: dict[str, Any], data: ImageDataModule, step: float) -> dict[str, Any]:
    """Seconds that decoding and that the network take in an epoch, and which waits for which."""
    train = found["splits"]["train"]
    images = train["images"] * data.hparams["repeats"]
    workers = max(1, worker_count(data.hparams["num_workers"]))
    decode = (train["decode_ms"] or {"median": 0.0})["median"] / 1000 * images / workers
    return {
        "epoch": {
            "decode_seconds": decode,
            "workers": workers,
            "network_seconds": step * images,
            "device": "cuda" if torch.cuda.is_available() else "cpu",
            "waits_for_data": decode > step * images,
        }
    }


def _would_fail(found: dict[str, Any], data: ImageDataModule) -> str | None:
    """Why a fit would end early, or None."""
    for role in ("train", "validation"):
        bad = sum(image["split"] == role for image in found["corrupt"])
        most = 0 if data.hparams["on_bad_image"] == "error" else data.hparams["max_bad_fraction"]
        if bad > most * found["splits"][role]["images"]:
            return f"{bad} of the {role} images cannot be decoded"
    return None


def _say(found: dict[str, Any], folder: Path) -> None:
    for name, meaning in PROBLEMS.items():
        if found[name]:
            log.info("%s: %d (%s)", name, len(found[name]), meaning)
            for image in found[name][:SHOWN]:
                log.info("    %s", _in_words(image))
            if len(found[name]) > SHOWN:
                log.info("    ... (%d more)", len(found[name]) - SHOWN)
    if not found["problems"]:
        log.info("nothing is wrong with these images")
    if found["test_not_read"]:
        log.info("no test data was read: %s", found["test_not_read"])
    epoch = found["epoch"]
    log.info(
        "an epoch takes about %.1f s of decoding (%d workers, no cache) and %.1f s of the network (%s, float32)",
        epoch["decode_seconds"],
        epoch["workers"],
        epoch["network_seconds"],
        epoch["device"],
    )
    if found["would_fail"]:
        log.info("training would fail: %s", found["would_fail"])
    log.info("see %s", folder / "check.html")


def _in_words(found: dict[str, Any] | list[dict[str, Any]]) -> str:
    if isinstance(found, list):
        return " = ".join(f"{image['name']} [{image['split']}, {image['class']}]" for image in found)
    return f"{found['name']} ({found['cause']})" if "cause" in found else found["name"]
