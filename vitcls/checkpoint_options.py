"""What a checkpoint knows of a verb's options, and what the user's words make of that."""

import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any

from jsonargparse import Namespace

from vitcls import runs
from vitcls.checkpoints import RECORD, Checkpoint, arguments_of
from vitcls.data.choice import TRAINING, SourceChoice, as_text
from vitcls.errors import UserError
from vitcls.trainer_options import as_list

log = logging.getLogger(__name__)


def run_to_resume(verb: str, said: Namespace) -> str | None:
    """The folder that --resume of a fit goes on in, None where nothing was saved there yet; of predict, --ckpt_path.

    Raises:
        UserError: it is neither of them, or --ckpt_path names another.
    """
    if verb == "predict":
        return said.ckpt_path
    if verb != "fit":
        raise UserError(f"--resume belongs to fit and predict; {verb} is done at once.")
    if said.ckpt_path is not None:
        raise UserError("--resume finds the checkpoint by --run_name; leave --ckpt_path out, or --resume.")
    folder = Path(said.trainer.default_root_dir).expanduser() / said.run_name
    return str(folder) if any((folder / name).is_file() for name in runs.CHECKPOINTS) else None


def keep_found_rate(said: Namespace, checkpoint: Checkpoint | None, known: dict[str, Any]) -> None:
    """A fit that --resume goes on with has the rate that was found when it began, whatever its configuration says.

    Raises:
        UserError: there a rate is to be found elsewhere than at the beginning of a fit.
    """
    run = checkpoint.run if checkpoint is not None and said.resume else None
    if run is None or not (run / runs.RANGE_TEST).is_file():
        raise UserError("--lr_find true is for the beginning of a fit; leave it out here.")
    said.lr_find, said.model.lr = False, known["lr"]
    log.info("--lr_find true is for the beginning of a run: it goes on at its --model.lr %g", said.model.lr)


def check_model_is_named(verb: str, said: Namespace) -> None:
    """Refuse to measure or predict with nothing that was trained.

    Raises:
        UserError: says what to name.
    """
    named = (said.ckpt_path, said.model.checkpoint, said.model.architecture, said.model.exported)
    if verb != "fit" and named == (None,) * len(named):
        raise UserError(
            f"{verb} needs a trained model: give a run folder or a .ckpt with --ckpt_path, or a fine-tuned "
            "--model.checkpoint."
        )


def checkpoint_defaults(content: dict[str, Any], run: Path | None, verb: str, said: Namespace) -> dict[str, Any]:
    """What a checkpoint knows, as a configuration of a verb.

    Naming a data set or a training folder replaces the checkpoint's whole source, so that the data of
    now is not joined with splits of then; a validation or test folder replaces its own role only.
    """
    model = arguments_of(content["hyper_parameters"])
    data = arguments_of(content.get("datamodule_hyper_parameters", {}))
    if any(said.data[name] is not None for name in TRAINING):
        data = {k: v for k, v in data.items() if k == "streaming" or k not in asdict(SourceChoice())}
    for role in ("validation", "test"):
        if any(said.data[f"{role}_{kind}"] is not None for kind in ("dir", "files")):
            data = {k: v for k, v in data.items() if k not in (f"{role}_dir", f"{role}_files")}
    for name in ("predict", "predict_dataset", "predict_split"):
        data.pop(name, None)
    if verb == "fit" and run is not None:
        started = runs.read_config(run)
        for name in ("callbacks", "logger"):
            _leave_out_again(started.get("trainer", {}), name, as_list(said.trainer[name]))
        return {**started, "model": {**started.get("model", {}), **model}, "data": data, "ckpt_path": None}
    precision = content[RECORD]["precision"]
    return {"model": model, "data": data, "trainer": {"precision": precision}}


def is_same_source(said: Namespace, known: dict[str, Any]) -> bool:
    """Whether the words name no data, or again that of the checkpoint, as those of `--resume` do."""
    default = asdict(SourceChoice())
    return all(said[key] == default[key] or as_text(said[key]) == as_text(known.get(key)) for key in default)


def _leave_out_again(trainer: dict[str, Any], name: str, said: list[Any]) -> None:
    """Of a run's callbacks or loggers, those that its resume adds again (`callbacks+`): there would be two of each."""
    if isinstance(trainer.get(name), list):
        again = {_which(one) for one in said}
        trainer[name] = [one for one in trainer[name] if _which(one) not in again]


def _which(one: Any) -> tuple[str, str | None]:
    """What Lightning tells two callbacks apart by, class and monitor where it has one; of loggers the class."""
    return one["class_path"], (one.get("init_args") or {}).get("monitor")


def check_task(task: str, known: dict[str, Any]) -> None:
    """Refuse another task than the checkpoint was trained for.

    Raises:
        UserError: names both.
    """
    if known.get("task", task) != task:
        raise UserError(
            f"--model.task is {task!r}, but the checkpoint was trained as {known['task']!r}; leave the option out."
        )


def keep_learned(model: Namespace, known: dict[str, Any]) -> None:
    """What was learned from the training data is not unsaid by the `null` of a fit's own config.yaml."""
    for name in ("labels", "image"):
        if model[name] is None:
            model[name] = known.get(name)
