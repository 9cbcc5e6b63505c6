"""`python -m vitcls soup`: the mean of those checkpoints' weights that together validate best, as a new run folder."""

import logging
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, Namespace
from lightning.pytorch import Trainer
from torch import Tensor

from vitcls import records, runs
from vitcls.checkpoints import RECORD, Checkpoint, arguments_of, open_checkpoint, read_checkpoint
from vitcls.data.datamodule import ImageDataModule
from vitcls.errors import UserError
from vitcls.soup.ingredients import check_alike, mean_with, model_of, weights_of
from vitcls.trainer_options import QUIET
from vitcls.wording import PARSER_OPTIONS, parsed

log = logging.getLogger(__name__)

Figures = dict[str, float]


def soup_parser() -> ArgumentParser:
    """The options of `soup`."""
    parser = ArgumentParser(
        prog="python -m vitcls soup",
        description="A greedy soup (Wortsman et al. 2022, arXiv:2203.05482, section 2): in the order of their "
        "validation figures, checkpoints of one network are averaged, leaving out each one that lowers that of the "
        "mean. Chosen on the validation data of the first; the test data is not read.",
        **PARSER_OPTIONS,
    )
    parser.add_argument("checkpoints", type=str, nargs="+", help="run folders (their best.ckpt) or .ckpt files.")
    parser.add_argument(
        "--output", type=str | None, default=None, help="run folder to make (default: soup, beside the first run)."
    )
    parser.add_argument("--accelerator", type=str, default="auto", help="as trainer.accelerator.")
    return parser


def run_soup(words: list[str]) -> int:
    """Make a soup.

    Args:
        words: of the command line, the verb first.

    Returns:
        the exit status, 0.

    Raises:
        UserError: a mistake in the words, or checkpoints that do not go together.
    """
    parser = soup_parser()
    with suppress(SystemExit):  # how --help ends
        _make(parsed(parser, words[1:], parser))
    return 0


def _make(options: Namespace) -> None:
    checkpoints = _found(options.checkpoints)
    check_alike(checkpoints)
    soup = GreedySoup(checkpoints, options.accelerator)
    taken, mean = soup.choose(checkpoints)
    place = Path(options.output).expanduser() if options.output else _beside(checkpoints[0])
    run = runs.claim_run_folder(place.parent, place.name)
    soup.keep(run, mean)
    splits = (checkpoints[0].run or run) / runs.SPLITS
    if splits.is_file():
        shutil.copy(splits, run)
    names = {c.file: _name(c) for c in checkpoints}
    left_out = [name for file, name in names.items() if file not in {c.file for c in taken}]
    runs.write_metrics(run, "soup", {"mean_of": [_name(c) for c in taken], "left_out": left_out})
    log.info("run folder: %s", run)


class GreedySoup:
    """One network, its validation data, and a trainer that measures it with the weights that it is given.

    Args:
        checkpoints: alike; the first says the data and the precision.
        accelerator: to measure on.
    """

    def __init__(self, checkpoints: list[Checkpoint], accelerator: str) -> None:
        content = read_checkpoint(checkpoints[0])
        said = arguments_of(content["datamodule_hyper_parameters"])
        self._runs = {c.run for c in checkpoints if c.run is not None}
        self._data = ImageDataModule(**said)
        self._model = model_of(checkpoints[0])
        self._trainer = _trainer(accelerator, content[RECORD]["precision"])
        self._checked = False

    def choose(self, checkpoints: list[Checkpoint]) -> tuple[list[Checkpoint], dict[str, Tensor]]:
        """The checkpoints that are taken, best first, and the mean of their weights."""
        monitor = runs.MONITOR[self._model.task]
        alone = [(self._measured(weights_of(c)), c) for c in checkpoints]
        for figures, checkpoint in alone:
            log.info("%s: %s", _name(checkpoint), _in_words(figures))
        ranked = sorted(alone, key=lambda pair: (-pair[0][monitor], pair[0]["val/loss"]))
        best, first = ranked[0]
        taken, mean = [first], weights_of(first)
        for _, checkpoint in ranked[1:]:
            more = mean_with(mean, len(taken), weights_of(checkpoint))
            figures = self._measured(more)
            keeps = figures[monitor] >= best[monitor]
            log.info("with %s: %s: %s", _name(checkpoint), _in_words(figures), "taken" if keeps else "left out")
            if keeps:
                taken, mean, best = [*taken, checkpoint], more, figures
        if len(taken) == 1:
            log.warning("no mean is as good as %s alone, so the soup is that checkpoint", _name(first))
        return taken, mean

    def keep(self, run: Path, mean: dict[str, Tensor]) -> None:
        """Write best.ckpt, model/ and metrics.json of these weights."""
        self._measured(mean)
        self._trainer.save_checkpoint(run / runs.BEST, weights_only=True)
        records.write_end(run, self._data)

    def _measured(self, weights: dict[str, Tensor]) -> Figures:
        self._model.load_state_dict({f"network.{name}": value for name, value in weights.items()})
        figures = self._trainer.validate(self._model, datamodule=self._data, verbose=False)[0]
        if not self._checked:  # the splits are there after the first time
            for run in sorted(self._runs):
                records.check_same_data(run, self._data.splits)
            self._checked = True
        return dict(figures)


def _found(paths: list[str]) -> list[Checkpoint]:
    found = {c.file.resolve(): c for c in (open_checkpoint(path, "soup")[0] for path in paths)}
    if len(found) < 2:
        raise UserError("A soup is made of at least two checkpoints: give several run folders or .ckpt files.")
    return list(found.values())


def _beside(checkpoint: Checkpoint) -> Path:
    return (checkpoint.run or checkpoint.file.parent).resolve().parent / "soup"


def _name(checkpoint: Checkpoint) -> str:
    return str(checkpoint.file)


def _trainer(accelerator: str, precision: Any) -> Trainer:
    return Trainer(accelerator=accelerator, devices=1, precision=precision, **QUIET)


def _in_words(figures: Figures) -> str:
    return ", ".join(f"{name} {value:.4f}" for name, value in figures.items())
