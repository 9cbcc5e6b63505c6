"""The options of predict alone."""

import math
from pathlib import Path
from typing import Any, Literal, NamedTuple

from vitcls.decisions import UNKNOWN
from vitcls.errors import UserError, check_range, listing
from vitcls.predictions.formats import FORMATS
from vitcls.types import PLAIN, Asked, Task

DEFAULT_OUTPUT = "predictions.csv"
# name -> (type, default, help)
OPTIONS: dict[str, tuple[Any, Any, str]] = {
    "output": (
        str | None,
        None,
        f"predict: file to write, {listing(FORMATS)} by its suffix (default: {DEFAULT_OUTPUT}).",
    ),
    "scores": (
        Literal["best", "all"],
        "best",
        "predict: `all` writes the probability of every class as well; `best` only those of the best classes.",
    ),
    "top_k": (int | None, None, "predict: how many of the best classes a row names (default: 5, or all if fewer)."),
    "embeddings": (
        bool,
        False,
        "predict: write the features of each image as well, what the network's head is given (mean over --data.tta).",
    ),
    "abstain": (
        float | None,
        None,
        f"predict: the label is `{UNKNOWN}` where the best probability is below this, in 0..1.",
    ),
    "sort_into": (
        str | None,
        None,
        "predict: folder in which each file is linked in a sub-folder of its label (of multilabel, of each of them).",
    ),
}


class PredictOptions(NamedTuple):
    """What the words of a predict say, checked as far as they can be without a model.

    Attributes:
        output: the file to write.
        asked: what it holds of each image.
        top_is_said: whether that many best classes were asked for, rather than the default.
        abstain: below which probability the label is `unknown`; None: never.
        sort_into: folder of links; None: no links.
        resumes: whether to go on with what an interrupted predict left.
    """

    output: Path
    asked: Asked = PLAIN
    top_is_said: bool = False
    abstain: float | None = None
    sort_into: Path | None = None
    resumes: bool = False


def add_options(parser: Any) -> None:
    """Give a parser the options of predict; every verb has them, so that it can say whose they are."""
    for name, (kind, default, meaning) in OPTIONS.items():
        parser.add_argument(f"--{name}", type=kind, default=default, help=meaning)


def refuse_elsewhere(verb: str, said: Any) -> None:
    """Refuse an option of predict in another verb.

    Raises:
        UserError: names it.
    """
    for name, (_, default, _) in OPTIONS.items():
        if verb != "predict" and said[name] != default:
            wrote = "writes no such file" if name == "output" else "writes no predictions"
            raise UserError(f"--{name} belongs to predict; {verb} {wrote}.")


def options_of(said: Any, resumes: bool) -> PredictOptions:
    """The options of a predict.

    Raises:
        UserError: a value out of range, or a file or folder that cannot be written.
    """
    top, abstain = said["top_k"], said["abstain"]
    check_range("top_k", top, top is None or top >= 1, "at least 1")
    check_range("abstain", abstain, abstain is None or (math.isfinite(abstain) and 0 <= abstain <= 1), "in 0..1")
    asked = Asked(scores=said["scores"] == "all", embeddings=said["embeddings"])
    asked = asked if top is None else asked._replace(top=top)
    sort_into = None if said["sort_into"] is None else Path(said["sort_into"]).expanduser()
    output = Path(said["output"] or DEFAULT_OUTPUT).expanduser()
    return PredictOptions(output, asked, top is not None, abstain, sort_into, resumes)


def check_for_model(options: PredictOptions, labels: list[str], task: Task) -> None:
    """Refuse what does not fit a model's classes.

    Raises:
        UserError: more best classes than there are, or an abstention that has no meaning.
    """
    top, classes = options.asked.top, len(labels)
    if options.top_is_said:
        check_range("top_k", top, top <= classes, f"at most {classes}, the model's number of classes")
    if options.abstain is None:
        return
    if task == "multilabel":
        raise UserError(
            "--abstain is for images of one class; with --model.task multilabel say from which probability a class is "
            "there, with --model.thresholds."
        )
    if UNKNOWN in labels:
        raise UserError(
            f"--abstain writes the label {UNKNOWN!r}, but the model has a class of that name; leave --abstain out, and "
            "choose by the column score."
        )
