"""fit, validate, test and predict: LightningCLI, joined with run folders."""

import logging
import os
import signal
import tempfile
from pathlib import Path
from typing import Any

import torch
import yaml
from jsonargparse import Namespace
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities.exceptions import SIGTERMException

from vitcls import answers, checkpoints, records, runs, sessions, tracking
from vitcls.attached import attach_report
from vitcls.callbacks import BadImageCount, MemoryAdvice, PredictionWriter, RunCheckpoint, TestAnswers, check_monitors
from vitcls.checkpoint_options import (
    check_model_is_named,
    check_task,
    checkpoint_defaults,
    is_same_source,
    keep_found_rate,
    keep_learned,
    run_to_resume,
)
from vitcls.data.datamodule import ImageDataModule
from vitcls.errors import Interrupted, LostProcessError, UserError
from vitcls.models.classifier import ViTClassifier
from vitcls.predictions.options import add_options, options_of, refuse_elsewhere
from vitcls.processes import is_first_process
from vitcls.rate_finding import find_rate
from vitcls.report.command import write_report
from vitcls.run_record import RunRecord
from vitcls.together import lost_process
from vitcls.trainer_options import (
    as_list,
    check_launch,
    check_overfit,
    check_restarts,
    check_strategy,
    fit_callbacks,
    launched_by_torchrun,
    length,
    run_loggers,
    with_progress_bar,
)
from vitcls.wording import PARSER_OPTIONS, parsed

log = logging.getLogger(__name__)

PRINT_CONFIG = "--print_config"
TRAINER_DEFAULTS = {
    "default_root_dir": runs.DEFAULT_ROOT,
    "enable_model_summary": False,  # the start-up line says what it says
    "enable_autolog_hparams": False,  # config.yaml is the record
    "log_every_n_steps": 10,  # Lightning's 50 leaves a small data set without a curve
    "use_distributed_sampler": False,  # Lightning's repeats rows until processes are even
}


class VitclsCLI(LightningCLI):
    """The four verbs of training.

    Args:
        args: words of the command line, the verb first.
        claimed: takes the folder that a fit makes for itself.

    Raises:
        UserError: a mistake in the words or in what they name.
    """

    def __init__(self, args: list[str], claimed: list[Path]) -> None:
        self.checkpoint: checkpoints.Checkpoint | None = None
        self._steps_before = 0
        self._unlogged: dict[str, float] = {}
        self._resumes = False
        self._answers: TestAnswers | None = None
        self._claimed = claimed
        self.run: Path | None = None
        self._verb = args[0]
        super().__init__(
            ViTClassifier,
            ImageDataModule,
            save_config_callback=RunRecord,
            trainer_defaults=TRAINER_DEFAULTS,
            seed_everything_default=42,
            parser_kwargs={**PARSER_OPTIONS, self._verb: dict(PARSER_OPTIONS)},
            auto_configure_optimizers=False,
            args=args,
        )

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]
        """The verb at hand alone: Lightning makes a parser for each, of some 0.3 s."""
        return {self._verb: LightningCLI.subcommands()[self._verb]}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """What is neither the trainer's, the model's nor the data's."""
        self._verb_parser = parser
        parser.add_argument(
            "--run_name",
            type=str,
            default="run",
            help="fit: folder of the run below trainer.default_root_dir; one that exists gets a version suffix.",
        )
        parser.add_argument(
            "--lr_find",
            type=bool,
            default=False,
            help="fit: find model.lr first, by up to 100 steps of a copy; config.yaml gets it, the run folder a plot.",
        )
        parser.add_argument(
            "--resume",
            type=bool,
            default=False,
            help="fit: go on in the folder of that name from its last checkpoint, or start there where there is none: "
            "so the same command takes up what was interrupted. predict: go on with what is left beside --output.",
        )
        parser.add_argument(
            "--report",
            type=bool,
            default=True,
            help="fit and test: at the end ask the model about whole splits and write report/index.html.",
        )
        add_options(parser)

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
        if verb == "fit":
            check_restarts(config[verb].resume, path)
        if config[verb].resume:
            path = run_to_resume(verb, config[verb])
        check_model_is_named(verb, config[verb])
        defaults: dict[str, Any] = {}
        if path is not None:
            self.checkpoint, content = checkpoints.open_checkpoint(path, verb)
            self._steps_before = content["global_step"]
            self.save_config_kwargs["starts_from"] = f"{self.checkpoint.file.name} of step {self._steps_before}"
            self._unlogged = content.get(checkpoints.UNLOGGED, {})
            if is_same_source(config[verb].data, content.get("datamodule_hyper_parameters", {})):
                self.save_config_kwargs["data_of"] = self.checkpoint.data_run
            defaults = checkpoint_defaults(content, self.checkpoint.run, verb, config[verb])
        if defaults or words != args:
            config = self._parse_with_defaults(parser, args, verb, defaults)
            keep_learned(config[verb].model, defaults.get("model", {}))
            check_task(config[verb].model.task, defaults.get("model", {}))
            config[verb].ckpt_path = None  # what is saved as config.yaml starts a run, not a resume
        if config[verb].lr_find and (verb != "fit" or self.checkpoint is not None):
            keep_found_rate(config[verb], self.checkpoint, defaults.get("model", {}))
        refuse_elsewhere(verb, config[verb])
        self._resumes, config[verb].resume = config[verb].resume, False  # also in config.yaml
        self.config = config

    def _parse_with_defaults(
        self, parser: LightningArgumentParser, args: Any, verb: str, defaults: dict[str, Any]
    ) -> Namespace:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "checkpoint.yaml"
            file.write_text(yaml.safe_dump(defaults), encoding="utf-8")
            self._verb_parser.default_config_files = [str(file)]
            return self._parse(parser, args)

    def _parse(self, parser: LightningArgumentParser, args: list[str]) -> Namespace:
        return parsed(parser, args, self._verb_parser)

    @property
    def _chosen(self) -> Namespace:
        """The verb's configuration, with its classes made."""
        return self.config_init[self.subcommand]

    # -- objects ----------------------------------------------------------------------------

    def instantiate_classes(self) -> None:
        """Make all that is configured; the loggers of services for the run folder, which is there first."""
        config = self.config[self.subcommand]
        if self.subcommand == "fit" and not config.trainer.fast_dev_run:
            self.run = self._run_folder(config)
        measured = self.checkpoint.run if self.checkpoint is not None else None
        with tracking.joined(config.trainer, self.run or measured):
            super().instantiate_classes()

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """The configured trainer, with what a run folder needs and the configuration does not name."""
        config = self._chosen.trainer
        check_strategy(config.strategy)
        check_overfit(config.overfit_batches, self.datamodule.hparams)
        fits = self.subcommand == "fit"
        callbacks = as_list(config.callbacks)
        callbacks = with_progress_bar(callbacks, shown=config.enable_progress_bar is not False)
        if not fits or config.enable_checkpointing is False:
            callbacks = [c for c in callbacks if not isinstance(c, Checkpoint)]
        if fits:
            check_monitors(callbacks, self.model.task)
        predicts = self.subcommand == "predict"
        # Before those of a fit, of which one ends an interrupted training when only these have had their turn.
        writes = PredictionWriter(options_of(self._chosen, self._resumes)) if predicts else None
        callbacks.append(writes or BadImageCount())
        callbacks.append(MemoryAdvice())
        if self.subcommand == "test" and self._chosen.report and self.checkpoint is not None and self.checkpoint.run:
            self._answers = TestAnswers()
            callbacks.append(self._answers)
        if self.run is not None:
            self.save_config_kwargs["run"] = self.run
            kwargs["logger"] = run_loggers(config.logger, self.run, self._steps_before)
            added = [] if config.enable_checkpointing is False else [RunCheckpoint(runs.MONITOR[self.model.task])]
            callbacks += fit_callbacks(callbacks, self.run, added)
            kwargs |= {"default_root_dir": str(self.run.parent), **length(config)}
        if predicts and config.logger:
            log.warning("predict has no figures to log: --trainer.logger is left out")
        if not fits:
            kwargs |= {"logger": not predicts and (config.logger or False), "enable_checkpointing": False}
        try:
            trainer = super().instantiate_trainer(callbacks=callbacks, **kwargs, **launched_by_torchrun(config))
            check_launch(trainer)
            return trainer
        # How Trainer refuses its arguments, and what says how many processes there are.
        except (MisconfigurationException, ValueError, TypeError, RuntimeError) as error:
            raise UserError(f"The trainer refuses its options: {' '.join(str(error).split())}") from error

    def after_instantiate_classes(self) -> None:
        """Hand the checkpoint to the verb; never unpickle it. An exported network loads itself."""
        arguments = self._chosen
        has_weights = self.checkpoint is not None and not self.checkpoint.is_exported
        arguments["ckpt_path"] = str(self.checkpoint.file) if self.checkpoint and has_weights else None
        arguments["weights_only"] = True
        if self.subcommand == "predict":
            arguments["return_predictions"] = False  # the writer keeps them; memory stays flat

    def _run_folder(self, config: Namespace) -> Path:
        """The folder of this fit: that of the run it resumes, or a new one."""
        if self.checkpoint is not None and self.checkpoint.run is not None:
            return self.checkpoint.run
        root = Path(config.trainer.default_root_dir).expanduser()
        name = config.run_name
        if not is_first_process():
            return root / name  # nothing is written by the other processes
        if self._resumes and (root / name).is_dir():
            runs.check_unused(root / name)
            return root / name
        self._claimed.append(runs.claim_run_folder(root, name))
        return self._claimed[-1]

    # -- before and after the verbs -----------------------------------------------------------

    def before_fit(self) -> None:
        """Find the learning rate if asked; keep the learning curves of the run that is resumed."""
        said = self.config[self.subcommand]
        if said.lr_find and self.checkpoint is None and not self.trainer.fast_dev_run:  # type: ignore[attr-defined]
            said.model.lr = self.model.hparams["lr"] = find_rate(self.model, self.datamodule, self.trainer, self.run)
        said.lr_find = False  # config.yaml trains the same model again
        if self.run is not None and is_first_process():
            records.restore_history(self.trainer.loggers, self.run, self._steps_before, self._unlogged)

    def after_fit(self) -> None:
        """From the best weights: `model/`, checked by a reload, and the figures.

        Raises:
            UserError: a resumed run that had nothing left to train.
        """
        if self.run is None:
            return
        nothing_trained = self.trainer.global_step == self._steps_before
        if nothing_trained and self._resumes and records.is_finished(self.run):
            log.info("the run is finished: %s", self.run)
            return
        if nothing_trained and (self.checkpoint is None or records.is_finished(self.run)):
            limits = {name: getattr(self.trainer, name) for name in ("max_epochs", "max_steps", "limit_train_batches")}
            allowed = ", ".join(f"--trainer.{name} {value}" for name, value in limits.items())
            raise UserError(
                f"Nothing was trained: {self.run} has had {self._steps_before} steps, and {allowed} allow no more. "
                "Raise what limits it; an epoch that was cut short counts as one."
            )
        if self.trainer.is_global_zero:
            model = records.write_end(self.run, self.datamodule)
            if not nothing_trained:  # else the entry is of a training that was killed, whose time nobody knows
                sessions.write_end(self.run, self.trainer)
            if self._chosen.report and model is not None:
                answers.keep_after_fit(self.run, model, self.datamodule, self.trainer)
                self._report_on(self.run)
            log.info("run folder: %s", self.run)

    def _report_on(self, run: Path) -> None:
        """Write the report, and hand its figures to what keeps the learning curves."""
        try:
            page = write_report(run)
        except UserError as error:  # of files beside what was trained or measured, which is kept
            log.warning("there is no report: %s", error)
            return
        attach_report(self.trainer.loggers, page.parent, self.trainer.global_step or self._steps_before)

    def before_test(self) -> None:
        """Refuse a run folder in which the reading could not be noted: test data is read once, and counted.

        Raises:
            UserError: the folder cannot be written, or its record is damaged.
        """
        counted = None if self.checkpoint is None else self.checkpoint.data_run
        if self.checkpoint is None or self.checkpoint.run is None:
            log.info("the figures are kept nowhere, since there is no run folder")
        if counted is None:
            return
        runs.read_metrics(counted)
        if not os.access(counted, os.W_OK):
            raise UserError(
                f"The run {counted} cannot be written to, so that this reading of the test data would not "
                "be counted; copy the folder to where it can, or give a .ckpt of it from another folder."
            )

    def after_test(self) -> None:
        """Keep the test figures with the run, if the whole test set was measured."""
        limit = self.trainer.limit_test_batches
        if isinstance(limit, int) or limit != 1.0:  # 1 is one batch, 1.0 is all of them
            return
        if self.checkpoint is None or not self.trainer.is_global_zero:
            return
        of_labels, split = self.model.figures_of_labels["test"], self.datamodule.splits["test"]
        if self.checkpoint.exported_from is not None:
            records.count_reading(self.checkpoint.exported_from, split)
        if self.checkpoint.run is not None:
            kept = records.write_test(self.checkpoint, split, self.trainer.callback_metrics, of_labels)
            if kept and self._answers is not None:
                found = self._answers.ids, self._answers.logits
                answers.keep_after_test(self.checkpoint.run, self.model, self.datamodule, found)
                self._report_on(self.checkpoint.run)


def run_verb(words: list[str]) -> int:
    """Run fit, validate, test or predict; a run folder in which nothing was trained is removed.

    Args:
        words: of the command line, the verb first.

    Returns:
        the exit status, 0.

    Raises:
        UserError: a mistake of the user.
        LostProcessError: another process of the training is gone.
        KeyboardInterrupt: Ctrl-C or another signal, after everything was put in order.
    """
    claimed: list[Path] = []
    try:
        VitclsCLI(words, claimed)
    except MisconfigurationException as error:
        raise UserError(" ".join(str(error).split())) from error
    except torch.OutOfMemoryError as error:
        raise UserError(" ".join(getattr(error, "__notes__", [str(error)])), of_one_process=True) from error
    except RuntimeError as error:
        sentence = lost_process(error)
        if sentence is None:
            raise
        raise LostProcessError(sentence) from error
    except SIGTERMException as error:  # how Lightning ends outside training
        raise Interrupted(signal.SIGTERM) from error
    except SystemExit as error:
        if error.code:  # how Lightning ends after an interruption; --help and --print_config end with 0
            raise (error.__context__ if isinstance(error.__context__, Interrupted) else KeyboardInterrupt()) from error
    finally:
        for folder in claimed:
            runs.discard_if_unused(folder)
    return 0
