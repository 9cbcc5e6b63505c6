"""`python -m vitcls runs`: the runs that there are, newest first."""

from contextlib import suppress
from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from vitcls import runs
from vitcls.errors import UserError, listing
from vitcls.overview.summary import is_run, summary
from vitcls.overview.table import as_json, print_table
from vitcls.wording import PARSER_OPTIONS, parsed


def runs_parser() -> ArgumentParser:
    """The options of `runs`."""
    parser = ArgumentParser(
        prog="python -m vitcls runs",
        description="Lists runs, newest first: what was trained on what, its validation figure, its test figure where "
        "that was read, size on disk, and age since the last training step. No checkpoint is opened.",
        **PARSER_OPTIONS,
    )
    parser.add_argument(
        "folders",
        type=str,
        nargs="*",
        default=[],
        help=f"folders of runs, or run folders (default: {runs.DEFAULT_ROOT}).",
    )
    parser.add_argument("--json", action="store_true", help="a JSON list instead of the table; figures unrounded.")
    return parser


def run_runs(words: list[str]) -> int:
    """List runs.

    Args:
        words: of the command line, the verb first.

    Returns:
        the exit status, 0.

    Raises:
        UserError: a mistake in the words, or a folder that is none.
    """
    parser = runs_parser()
    with suppress(SystemExit):  # how --help ends
        _list(parsed(parser, words[1:], parser))
    return 0


def _list(options: Namespace) -> None:
    roots = [Path(folder).expanduser() for folder in options.folders] or [Path(runs.DEFAULT_ROOT)]
    inside = [folder for root in roots for folder in _folders(root, named=bool(options.folders))]
    inside = list({folder.resolve(): folder for folder in inside}.values())  # a folder may be named twice
    found = sorted((summary(folder) for folder in inside if is_run(folder)), key=lambda run: -run.changed)
    if options.json:
        print(as_json(found))
        return
    if found:
        print_table(found)
    else:
        print(f"No runs in {listing(map(str, roots))}; python -m vitcls fit makes one.")
    _tell_others([folder for folder in inside if not is_run(folder)])


def _folders(root: Path, named: bool) -> list[Path]:
    """The folder itself if it is a run, else those in it."""
    if not root.is_dir():
        if not named:
            return []
        raise UserError(f"{str(root)!r} is no folder; name run folders, or folders that hold some.")
    try:
        if is_run(root):
            return [root]
        return sorted(folder for folder in root.iterdir() if folder.is_dir() and not folder.name.startswith("."))
    except OSError as error:
        raise UserError(f"The folder {root} cannot be read: {error}.") from error


def _tell_others(folders: list[Path]) -> None:
    checks = [str(folder) for folder in folders if (folder / "check.json").is_file()]
    others = [str(folder) for folder in folders if str(folder) not in checks]
    if checks:
        print(f"checks of data: {listing(checks)}")
    if others:
        print(f"no runs: {listing(others)}")
