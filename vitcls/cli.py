"""fit, validate, test and predict: LightningCLI, joined with run folders."""

import logging
import os
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import yaml
from jsonargparse import ArgumentError, Namespace
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, Checkpoint, ModelCheckpoint, ProgressBar, RichProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger

from vitcls import records, runs
from vitcls.callbacks import (
    BadImageCount,
    ConfiguredPatience,
    DataWait,
    GracefulInterrupt,
    PredictionWriter,
    RunCheckpoint,
    check_monitors,
)
from vitcls.data.choice import SourceChoice
from vitcls.data.datamodule import ImageDataModule
from vitcls.errors import UserError
from vitcls.models.classifier import ViTClassifier
from vitcls.processes import is_first_process
from vitcls.wording import sentence

log = logging.getLogger(__name__)

DEFAULT_ROOT = "checkpoints"
DEFAULT_OUTPUT = "predictions.csv"
DEFAULT_EPOCHS = 10
# A guessed option is a silent one, and a parser that exits prints a page before the reason.
PARSER_OPTIONS = {"allow_abbrev": False, "exit_on_error": False}
PRINT_CONFIG = "--print_config"
TRAINER_DEFAULTS = {
    "default_root_dir": DEFAULT_ROOT,
    "enable_model_summary": False,  # the start-up line says what it says
    "enable_autolog_hparams": False,  # config.yaml is the record
    "log_every_n_steps": 10,  # Lightning's 50 leaves a small data set without a curve
    "use_distributed_sampler": False,  # Lightning's repeats rows until processes are even
}


class RunRecord(SaveConfigCallback):
    """Writes config.yaml and splits.json of a fit, right before its first step and not earlier.

    A resume that is refused, or has nothing left to train, must leave the run's own record alone.
    """

    def __init__(
        self, parser: LightningArgumentParser, config: Namespace, run: Path | None = None, data_of: Path | None = None
    ) -> None:
        super().__init__(parser, config, save_to_log_dir=False)
        self._run = run
        self._data_of = data_of

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Where the data is to be that of an earlier run, check that it is."""
        if self._data_of is not None:
            records.check_same_data(self._data_of, trainer.datamodule.splits)  # type: ignore[attr-defined]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The weights are loaded and there is something to train."""
        if trainer.is_global_zero:
            self.save_config(trainer, pl_module, "fit")

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write both; earlier ones of a resumed run are kept beside them."""
        if stage != "fit" or self._run is None:
            return
        text = self.parser.dump(self.config, skip_none=False)
        records.write_start(self._run, text, trainer.datamodule.splits, trainer.datamodule.hparams)  # type: ignore[attr-defined]


class VitclsCLI(LightningCLI):
    """The four verbs of training.

    Args:
        args: words of the command line, the verb first.
        claimed: takes the folder that a fit makes for itself.

    Raises:
        UserError: a mistake in the words or in what they name.
    """

    def __init__(self, args: list[str], claimed: list[Path]) -> None:
        self.checkpoint: runs.Checkpoint | None = None
        self._steps_before = 0
        self._claimed = claimed
        self.run: Path | None = None
        self._verb_parsers: list[LightningArgumentParser] = []
        super().__init__(
            ViTClassifier,
            ImageDataModule,
            save_config_callback=RunRecord,
            trainer_defaults=TRAINER_DEFAULTS,
            seed_everything_default=42,
            parser_kwargs={**PARSER_OPTIONS, **{verb: dict(PARSER_OPTIONS) for verb in self.subcommands()}},
            auto_configure_optimizers=False,
            args=args,
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """What is neither the trainer's, the model's nor the data's; called for each verb's parser in turn."""
        self._verb_parsers.append(parser)
        parser.add_argument(
            "--run_name",
            type=str,
            default="run",
            help="fit: folder of the run below trainer.default_root_dir; one that exists gets a version suffix.",
        )
        parser.add_argument(
            "--output", type=str | None, default=None, help=f"predict: CSV file to write (default: {DEFAULT_OUTPUT})."
        )

    # -- words ------------------------------------------------------------------------------

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse; where a checkpoint is named, parse again with what it knows as the defaults.

        So the user's words and configs always beat the checkpoint's.
        """
        # --print_config prints and ends: it has to wait until what a checkpoint knows is there.
        words = [word for word in args if not word.startswith(PRINT_CONFIG)]
        config = self._parse(parser, words)
        verb = config.subcommand
        path = config[verb].ckpt_path
        _check_model_is_named(verb, config[verb])
        defaults: dict[str, Any] = {}
        if path is not None:
            self.checkpoint = runs.find_checkpoint(path, verb)
            content = runs.read_checkpoint(self.checkpoint)
            self._steps_before = content["global_step"]
            if all(config[verb].data[key] == default for key, default in asdict(SourceChoice()).items()):
                self.save_config_kwargs["data_of"] = self.checkpoint.run
            defaults = _checkpoint_defaults(content, self.checkpoint.run, verb, config[verb])
        if defaults or words != args:
            config = self._parse_with_defaults(parser, args, verb, defaults)
            _keep_learned(config[verb].model, defaults.get("model", {}))
            config[verb].ckpt_path = None  # what is saved as config.yaml starts a run, not a resume
        if verb != "predict" and config[verb].output is not None:
            raise UserError(f"--output belongs to predict; {verb} writes no such file.")
        self.config = config

    def _parse_with_defaults(
        self, parser: LightningArgumentParser, args: Any, verb: str, defaults: dict[str, Any]
    ) -> Namespace:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "checkpoint.yaml"
            file.write_text(yaml.safe_dump(defaults), encoding="utf-8")
            self._parser_of(verb).default_config_files = [str(file)]
            return self._parse(parser, args)

    def _parse(self, parser: LightningArgumentParser, args: list[str]) -> Namespace:
        try:
            return parser.parse_args(args)
        except ArgumentError as error:
            options = self._parser_of(args[0]).get_defaults(skip_validation=True).keys()
            raise UserError(sentence(str(error), options)) from error
        except UnicodeDecodeError as error:
            raise UserError(f"A configuration file is not UTF-8 text ({error}); save it as UTF-8.") from error

    def _parser_of(self, verb: str) -> LightningArgumentParser:
        return dict(zip(self.subcommands(), self._verb_parsers, strict=True))[verb]

    @property
    def _chosen(self) -> Namespace:
        """The verb's configuration, with its classes made."""
        return self.config_init[self.subcommand]

    # -- objects ----------------------------------------------------------------------------

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """The configured trainer, with what a run folder needs and the configuration does not name."""
        config = self._chosen.trainer
        _check_strategy(config.strategy)
        fits = self.subcommand == "fit"
        callbacks = _as_list(config.callbacks)
        callbacks = _with_progress_bar(callbacks, shown=config.enable_progress_bar is not False)
        if not fits or config.enable_checkpointing is False:
            callbacks = [c for c in callbacks if not isinstance(c, Checkpoint)]
        if fits:
            check_monitors(callbacks)
        if fits and not config.fast_dev_run:
            self.run = self._run_folder()
            self.save_config_kwargs["run"] = self.run
            kwargs["logger"] = _loggers(config.logger, self.run, self._steps_before)
            callbacks += _fit_callbacks(callbacks, self.run, checkpoints=config.enable_checkpointing is not False)
            kwargs |= {"default_root_dir": str(self.run.parent), **_length(config)}
        if not fits:
            kwargs |= {"logger": config.logger or False, "enable_checkpointing": False}
        if self.subcommand != "predict":
            callbacks.append(BadImageCount())
        else:
            callbacks.append(PredictionWriter(self._chosen.output or DEFAULT_OUTPUT))
        try:
            return super().instantiate_trainer(callbacks=callbacks, **kwargs, **_launched_by_torchrun(config))
        except (MisconfigurationException, ValueError, TypeError) as error:  # how Trainer refuses its arguments
            raise UserError(f"The trainer refuses its options: {' '.join(str(error).split())}") from error

    def after_instantiate_classes(self) -> None:
        """Hand the checkpoint to the verb; never unpickle it."""
        arguments = self._chosen
        arguments["ckpt_path"] = str(self.checkpoint.file) if self.checkpoint else None
        arguments["weights_only"] = True
        if self.subcommand == "predict":
            arguments["return_predictions"] = False  # the writer keeps them; memory stays flat

    def _run_folder(self) -> Path:
        """The folder of this fit: that of the run it resumes, or a new one."""
        if self.checkpoint is not None and self.checkpoint.run is not None:
            return self.checkpoint.run
        root = Path(self._chosen.trainer.default_root_dir).expanduser()
        name = self._chosen.run_name
        if not is_first_process():
            return root / name  # nothing is written by the other processes
        self._claimed.append(runs.claim_run_folder(root, name))
        return self._claimed[-1]

    # -- before and after the verbs -----------------------------------------------------------

    def before_fit(self) -> None:
        """Keep the learning curves of the run that is resumed, and do not repeat its dropout."""
        if self.checkpoint is not None:
            torch.manual_seed(int(self.config[self.subcommand].seed_everything) + self._steps_before)
        if self.run is not None and is_first_process():
            records.restore_history(self.trainer.loggers, self.run, self._steps_before)

    def after_fit(self) -> None:
        """From the best weights: `model/`, checked by a reload, and the figures.

        Raises:
            UserError: a resumed run that had nothing left to train.
        """
        if self.run is None:
            return
        nothing_trained = self.trainer.global_step == self._steps_before
        if nothing_trained and (self.checkpoint is None or (self.run / runs.MODEL).is_dir()):
            limits = {name: getattr(self.trainer, name) for name in ("max_epochs", "max_steps", "limit_train_batches")}
            allowed = ", ".join(f"--trainer.{name} {value}" for name, value in limits.items())
            raise UserError(
                f"Nothing was trained: {self.run} has had {self._steps_before} steps, and {allowed} allow no more. "
                "Raise what limits it; an epoch that was cut short counts as one."
            )
        if self.trainer.is_global_zero:
            records.write_end(self.run, self.datamodule)
            log.info("run folder: %s", self.run)

    def after_test(self) -> None:
        """Keep the test figures with the run, if the whole test set was measured."""
        limit = self.trainer.limit_test_batches
        if isinstance(limit, int) or limit != 1.0:  # 1 is one batch, 1.0 is all of them
            return
        if self.checkpoint is not None and self.checkpoint.run is not None and self.trainer.is_global_zero:
            records.write_test(self.checkpoint, self.datamodule.splits["test"], self.trainer.callback_metrics)


def run_verb(words: list[str]) -> None:
    """Run fit, validate, test or predict; a run folder in which nothing was trained is removed.

    Args:
        words: of the command line, the verb first.

    Raises:
        UserError: a mistake of the user.
        KeyboardInterrupt: Ctrl-C, after everything was put in order.
    """
    claimed: list[Path] = []
    try:
        VitclsCLI(words, claimed)
    except MisconfigurationException as error:
        raise UserError(" ".join(str(error).split())) from error
    except SystemExit as error:
        if error.code:  # how Lightning ends after Ctrl-C; --help and --print_config end with 0
            raise KeyboardInterrupt from error
    finally:
        for folder in claimed:
            runs.discard_if_unused(folder)


def _check_model_is_named(verb: str, said: Namespace) -> None:
    if verb != "fit" and said.ckpt_path is None and said.model.checkpoint is None and said.model.architecture is None:
        raise UserError(
            f"{verb} needs a trained model: give a run folder or a .ckpt with --ckpt_path, or a fine-tuned "
            "--model.checkpoint."
        )


def _checkpoint_defaults(content: dict[str, Any], run: Path | None, verb: str, said: Namespace) -> dict[str, Any]:
    """What a checkpoint knows, as a configuration of a verb.

    Naming a data set or a training folder replaces the checkpoint's whole source, so that the data of
    now is not joined with splits of then; a validation or test folder replaces its own role only.
    """
    model = {k: v for k, v in content["hyper_parameters"].items() if k != "_instantiator"}
    data = {k: v for k, v in content.get("datamodule_hyper_parameters", {}).items() if k != "_instantiator"}
    if any(said.data[name] is not None for name in ("dataset", "train_dir", "train_files")):
        data = {k: v for k, v in data.items() if k not in asdict(SourceChoice())}
    for name in ("predict", "predict_dataset", "predict_split"):
        data.pop(name, None)
    if verb == "fit" and run is not None:
        started = runs.read_config(run)
        return {**started, "model": {**started.get("model", {}), **model}, "data": data, "ckpt_path": None}
    precision = content[runs.RECORD]["precision"]
    return {"model": model, "data": data, "trainer": {"precision": precision}}


def _keep_learned(model: Namespace, known: dict[str, Any]) -> None:
    """What was learned from the training data is not unsaid by the `null` of a fit's own config.yaml."""
    for name in ("labels", "image"):
        if model[name] is None:
            model[name] = known.get(name)


def _as_list(value: Any) -> list[Any]:
    if value is None or isinstance(value, bool):
        return []
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _with_progress_bar(callbacks: list[Callback], shown: bool) -> list[Callback]:
    """With rich's bar where none is configured; without any where none is to be shown."""
    if not shown:
        return [c for c in callbacks if not isinstance(c, ProgressBar)]
    return callbacks if any(isinstance(c, ProgressBar) for c in callbacks) else [*callbacks, RichProgressBar()]


def _loggers(configured: Any, run: Path, steps: int) -> list[Logger] | bool:
    """TensorBoard and CSV in the run folder, and those configured; none where `false` was said."""
    if configured is False:
        return False
    # What a lost training logged after the checkpoint's step is purged.
    own = [
        TensorBoardLogger(run, name="", version="", purge_step=steps or None),
        CSVLogger(run, name="", version=""),
    ]
    return [*own, *_as_list(configured)]


def _fit_callbacks(configured: list[Callback], run: Path, checkpoints: bool) -> list[Callback]:
    """What a fit has besides the configured callbacks; checkpoints without a folder get the run's."""
    added: list[Callback] = [GracefulInterrupt(), ConfiguredPatience()]
    if not any(isinstance(c, DataWait) for c in configured):
        added.append(DataWait())
    if checkpoints and not any(isinstance(c, RunCheckpoint) for c in configured):
        added.append(RunCheckpoint())
    for callback in [*configured, *added]:
        if isinstance(callback, ModelCheckpoint) and callback.dirpath is None:
            callback.dirpath = str(run.resolve())
    return added


def _length(config: Namespace) -> dict[str, Any]:
    if config.max_epochs is not None or config.max_steps != -1 or config.max_time is not None:
        return {}
    log.info("trainer.max_epochs is not given: %d", DEFAULT_EPOCHS)
    return {"max_epochs": DEFAULT_EPOCHS}


def _check_strategy(strategy: Any) -> None:
    """Refuse the launchers after which this process knows neither the data nor the weights of the training."""
    if isinstance(strategy, str) and any(launcher in strategy for launcher in ("spawn", "fork", "notebook")):
        raise UserError(f"--trainer.strategy {strategy!r} cannot be used here: ddp does the same.")


def _launched_by_torchrun(config: Namespace) -> dict[str, Any]:
    """Devices and nodes as torchrun started them; without this each process would train alone."""
    if "TORCHELASTIC_RUN_ID" not in os.environ or config.devices != "auto":
        return {}
    world, local = int(os.environ["WORLD_SIZE"]), int(os.environ["LOCAL_WORLD_SIZE"])
    strategy = "ddp" if config.strategy == "auto" else config.strategy
    return {"devices": local, "num_nodes": world // local, "strategy": strategy}
