"""`python -m vitcls`: chooses the verb, and tells the user's mistakes in one sentence."""

import logging
import os
import signal
import sys
import warnings
from collections.abc import Callable
from typing import Any

from vitcls import __version__
from vitcls.errors import LostProcessError, UserError, suggestion
from vitcls.processes import is_first_of_machine, is_first_process

VERBS = {
    "check": "read every image of a configuration and say what is wrong with them",
    "fit": "train a classifier, validate it each epoch, keep the best",
    "validate": "measure a run or checkpoint on its validation data",
    "test": "measure a run or checkpoint on its test data, to be read once",
    "predict": "classify image files, one row of a CSV, JSON-lines or parquet file for each",
    "report": "make the page of a run again, or compare several runs",
    "runs": "list the runs there are: data, model, figures, size, age",
    "export": "make files of a run that others run, proven to give its answers",
    "methods": "try every way of training on small networks: does it train, resume, export, merge?",
    "soup": "average the weights of several runs of one network, as far as it validates better",
    "serve": "answer over HTTP what is on the images that are sent, with a page to try it",
    "bench": "measure here how fast images load, what rows cost in memory, what check, fit and predict cost",
}
FAILED = 1  # exit status where another process of the training is gone
MISTAKE = 2  # exit status of a user's mistake, as of any command line with unknown words
SHOW_TRACEBACKS = "VITCLS_TRACEBACK"  # set to anything, a mistake is told with its traceback
SIGNALLED = 128  # and the number of the signal, as shells count it: 130 for Ctrl-C, 143 for SIGTERM


# Warnings that a user can do nothing about, or that tell of what is meant to be so.
_NOT_FOR_USERS: list[tuple[type[Warning], str]] = [
    (DeprecationWarning, ""),  # between libraries
    (FutureWarning, ""),
    (UserWarning, "Checkpoint directory .* exists and is not empty"),  # the run folder, just made
    (UserWarning, "Be aware that when using `ckpt_path`, callbacks used"),  # fit's, in another verb
    (UserWarning, r"Detected call of `lr_scheduler.step\(\)` before"),  # float16: the first step was skipped
    (UserWarning, r"Found \d+ module\(s\) in eval mode"),  # batch norms under frozen weights
    (UserWarning, "The number of training batches .* is smaller than the logging interval"),
    (UserWarning, "The '.*_dataloader' does not have many workers"),  # `num_workers` is chosen, or said
]


def main(args: list[str] | None = None) -> int:
    """Run a command line.

    Args:
        args: its words; not given: those of this process.

    Returns:
        the exit status: 0, 1 where another process is gone, 2 for a mistake of the user, 130 for Ctrl-C, 143 for
        SIGTERM, 138 for SIGUSR1.
    """
    words = sys.argv[1:] if args is None else args
    if not words or words[0] in ("-h", "--help"):
        print(_help())
        return 0 if words else MISTAKE
    if words[0] == "--version":
        print(f"vitcls {__version__}")
        return 0
    try:
        return _run(words)
    except UserError as error:
        if os.environ.get(SHOW_TRACEBACKS):
            raise
        # On each machine: what was found before the processes have met may be the mistake of one of them.
        if is_first_of_machine() or error.of_one_process:
            _tell(_sentence(error))
        return MISTAKE
    except LostProcessError as error:
        _tell(str(error))  # whichever process is left
        return FAILED
    except KeyboardInterrupt as interruption:
        if is_first_process():
            _tell("interrupted")
        return SIGNALLED + getattr(interruption, "number", signal.SIGINT)


def _run(words: list[str]) -> int:
    verb = words[0]
    if verb not in VERBS:
        raise UserError(f"{verb!r} is none of the verbs {', '.join(VERBS)}{suggestion(verb, VERBS)}.")
    run = _command(verb)
    _configure_logging()
    return run(words)


def _command(verb: str) -> Callable[[list[str]], int]:
    """What runs a verb; 5 s of imports, which --help must not pay for."""
    if verb == "check":
        from vitcls.check.command import run_check

        return run_check
    if verb == "runs":
        from vitcls.overview.command import run_runs

        return run_runs
    if verb == "methods":
        from vitcls.methods.command import run_methods

        return run_methods
    if verb == "report":
        from vitcls.report.command import run_report

        return run_report
    if verb == "bench":
        from vitcls.bench.command import run_bench

        return run_bench
    if verb == "export":
        from vitcls.export.command import run_export

        return run_export
    if verb == "soup":
        from vitcls.soup.command import run_soup

        return run_soup
    if verb == "serve":
        from vitcls.serve.command import run_serve

        return run_serve
    from vitcls.cli import run_verb

    return run_verb


def _configure_logging() -> None:
    """Our lines on standard output, those of Lightning's that matter, warnings in one line each."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(logging.Formatter("%(message)s"))
    ours = logging.getLogger("vitcls")
    ours.handlers = [handler]
    ours.propagate = False
    ours.setLevel(logging.INFO if is_first_process() else logging.ERROR)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    logging.getLogger("lightning.fabric").setLevel(logging.WARNING)
    datasets = sys.modules.get("datasets")  # imported by now, if the verb reads data
    if datasets is not None and not sys.stderr.isatty():
        datasets.disable_progress_bars()  # in a file they are noise around the one line that counts
    warnings.showwarning = _show_warning
    for category, message in _NOT_FOR_USERS:
        warnings.filterwarnings("ignore", category=category, message=message)


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    if is_first_process():
        print(f"warning: {' '.join(str(message).split())}", file=sys.stderr)


def _sentence(error: UserError) -> str:
    """What was said first: torch puts a worker's whole traceback before it."""
    return str(error).rpartition(f"{UserError.__module__}.{UserError.__name__}: ")[2].strip()


def _tell(sentence: str) -> None:
    print(f"vitcls: {sentence}", file=sys.stderr)


def _help() -> str:
    verbs = "\n".join(f"  {verb:<10}{meaning}" for verb, meaning in VERBS.items())
    return f"""usage: python -m vitcls VERB [options]

From a set of labelled images to a Vision Transformer classifier that can be trusted.

verbs:
{verbs}

python -m vitcls VERB --help lists the options of a verb; --version tells the version.

  python -m vitcls fit --config configs/digits.yaml
  python -m vitcls fit --config configs/imagefolder.yaml --data.train_dir photos/train
  python -m vitcls test --ckpt_path checkpoints/digits
  python -m vitcls predict --ckpt_path checkpoints/digits --data.predict photos/new"""


if __name__ == "__main__":
    sys.exit(main())
