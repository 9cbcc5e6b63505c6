"""`python -m vitcls report`: the page of a run, or the comparison of several."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from vitcls import runs
from vitcls.errors import UserError
from vitcls.wording import PARSER_OPTIONS, parsed

log = logging.getLogger(__name__)

COMPARISON = "comparison"


def write_report(run: Path) -> Path:
    """Write the report of a run from what it has saved, and say where.

    Args:
        run: the folder.

    Raises:
        UserError: it has saved nothing to report on, or the report cannot be written.
    """
    from vitcls.report.content import read_content  # scikit-learn and matplotlib take seconds, which --help must not
    from vitcls.report.page import write_page

    with _writing(run / runs.REPORT):
        page = write_page(read_content(run))
    log.info("report: %s", page)
    return page


def run_report(words: list[str]) -> int:
    """Report on a run, or compare several.

    Args:
        words: of the command line, the verb first.

    Returns:
        0.

    Raises:
        UserError: a mistake in the words, or runs that cannot be reported on or compared.
    """
    parser = report_parser()
    with suppress(SystemExit):  # how --help ends
        _report(parsed(parser, words[1:], parser))
    return 0


def report_parser() -> ArgumentParser:
    """The options of `report`."""
    parser = ArgumentParser(
        prog="python -m vitcls report",
        description="The report of a run (RUN/report/index.html), made again; or, of several runs, their comparison.",
        **PARSER_OPTIONS,
    )
    parser.add_argument("runs", type=str, nargs="+", help="run folders.")
    parser.add_argument(
        "--output",
        type=str | None,
        default=None,
        help=f"of several runs: the folder of the comparison to write (default: {COMPARISON}).",
    )
    return parser


def _report(options: Namespace) -> None:
    folders = [Path(run).expanduser() for run in options.runs]
    if len(folders) == 1:
        if options.output is not None:
            raise UserError("--output is for the comparison of several runs; the report of one is in its folder.")
        write_report(folders[0])
        return
    from vitcls.report.comparison import write_comparison

    output = Path(options.output or COMPARISON).expanduser()
    with _writing(output):
        page = write_comparison(folders, output)
    log.info("comparison: %s", page)


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """Say of a folder that cannot be written that it cannot."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{str(folder)!r} could not be written ({error}).") from error
