"""W&B and MLflow: which of their runs a run folder has, and how Lightning's loggers are made for it."""

import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import Namespace
from lightning.pytorch.loggers import Logger, MLFlowLogger, WandbLogger

from vitcls import runs
from vitcls.errors import UserError
from vitcls.processes import is_first_process
from vitcls.trainer_options import as_list

log = logging.getLogger(__name__)

NAMED_BY = {"WandbLogger": "name", "MLFlowLogger": "run_name"}  # the argument that calls a run as its folder


@contextmanager
def joined(trainer: Namespace, run: Path | None) -> Iterator[None]:
    """While classes are made of a configuration, have its loggers of services be of a run folder.

    They are called as the folder, and go on with the service's run that `keep` has noted there. What is saved as
    config.yaml has nothing of it: that starts another run.

    Args:
        trainer: the `trainer` part of the configuration; as before afterwards.
        run: the folder; None where nothing is trained and no run is measured.

    Raises:
        UserError: a class of the configuration could not be made, also because its package is missing.
    """
    said = trainer.logger
    if said is not None and not isinstance(said, bool):
        trainer.logger = [logger for one in as_list(said) if (logger := _of_run(one, run)) is not None]
    try:
        yield
    except UserError:
        raise
    except ValueError as error:
        raise _told(error) from error
    finally:
        trainer.logger = said


def _of_run(said: Any, run: Path | None) -> Any:
    """A logger's configuration with what the folder knows; None of a service in other processes than the first.

    These log nothing, and would race for MLflow's database.
    """
    service = said.class_path.rpartition(".")[2] if isinstance(said, Namespace) else None
    if service not in NAMED_BY:
        return said
    if not is_first_process():
        return None
    said = said.clone()
    known: dict[str, Any] = {}
    if run is not None:
        known = {NAMED_BY[service]: run.name, **runs.read_tracking(run).get(service, {})}
    if service == "MLFlowLogger":
        known = _of_mlflow(known)
    for name, value in known.items():
        if said.init_args.get(name) is None:
            said.init_args[name] = value
    return said


def _of_mlflow(known: dict[str, Any]) -> dict[str, Any]:
    """With MLflow's own place for runs: Lightning's, a folder of files, is refused since MLflow 3.17.

    A run that is no longer there is left out, after a warning.
    """
    try:
        import mlflow
    except ImportError:  # the logger tells it
        return known
    known = {"tracking_uri": mlflow.get_tracking_uri(), **known}
    if "run_id" in known:
        try:
            mlflow.MlflowClient(known["tracking_uri"]).get_run(known["run_id"])
        except mlflow.MlflowException as error:
            log.warning("MLflow's run of this folder is gone (%s): another is begun", _flat(str(error)))
            del known["run_id"]
    return known


def keep(loggers: Sequence[Logger], run: Path, config: str) -> None:
    """Note in the run folder which runs of services it has; tell new ones the configuration.

    Args:
        loggers: of the trainer, in its first process.
        run: the folder.
        config: YAML text.
    """
    found: dict[str, dict[str, Any]] = {}
    before = runs.read_tracking(run)
    for logger in loggers:
        service = type(logger).__name__
        if isinstance(logger, WandbLogger):
            found[service] = {"version": logger.version}
        elif isinstance(logger, MLFlowLogger):
            import mlflow

            found[service] = {"run_id": logger.run_id, "tracking_uri": mlflow.get_tracking_uri()}
        if service in found and found[service] != before.get(service):
            logger.log_hyperparams(yaml.safe_load(config))  # MLflow refuses to change them afterwards
    if found:
        runs.write_tracking(run, {**before, **found})


def _told(error: ValueError) -> ValueError:
    """The parser's page about a class that could not be made, as one sentence; another error as it is."""
    text = str(error)
    found = re.search(r"Problem with given class_path '([\w.]+)':\s+(.+)", text)
    found = found or re.search(r"()^ +- (?!Expected|Not a valid subclass)(.+)", text, re.MULTILINE)
    if found is None:
        return error
    made, reason = found[1] or "A class of the configuration", found[2].strip()
    if missing := re.match(r"Requirement '(.+?)' not met", reason):
        return UserError(f"{made} needs a package that is not installed: pip install '{missing[1]}'.")
    return UserError(f"{made} cannot be made: {reason}")


def _flat(text: str) -> str:
    return " ".join(text.split())
