"""`python -m vitcls methods`: tries every way of training on a small network of each family, and prints a table.

Each is trained, resumed, exported and merged for real, with random weights and images of noise: it takes about a
minute, and no data.
"""

import json
import logging
import sys
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from jsonargparse import ArgumentParser
from rich.console import Console
from rich.progress import track
from rich.table import Table

from vitcls.errors import UserError, listing, suggestion
from vitcls.methods.networks import FAMILIES
from vitcls.methods.size import BYTES, trained_parameters
from vitcls.methods.trial import Found, tried
from vitcls.methods.ways import WAYS
from vitcls.models.network import quiet_transformers
from vitcls.wording import parsed

LETTERS = {"trains": "T", "resumes": "R", "exports": "E", "merges": "M"}
LEGEND = (
    "T trains what it says and nothing else; R resumes bit for bit; E the exported folder gives the same logits and "
    "labels; M so does the network with the adapter merged into it. -: nothing to merge, or peft cannot. !: fails. "
    "An empty place: not for such a network, and refused in a sentence."
)
FAILED = 1  # exit status where a way does not do what it says

Trials = dict[tuple[str, str], Found | None]


def methods_parser() -> ArgumentParser:
    """The options of `methods`."""
    parser = ArgumentParser(
        prog="python -m vitcls methods", description=__doc__, exit_on_error=False, allow_abbrev=False
    )
    parser.add_argument("--methods", type=list[str], default=list(WAYS), help="which ones; not given: all.")
    parser.add_argument("--families", type=list[str], default=list(FAMILIES), help="of networks; not given: all.")
    parser.add_argument("--output", type=str | None, default=None, help="JSON file to write what was found to.")
    return parser


def run_methods(words: list[str]) -> int:
    """Try, print, write the JSON file.

    Args:
        words: of the command line, the verb first.

    Returns:
        the exit status: 0, or 1 where a way does not do what it says.

    Raises:
        UserError: a mistake of the user.
    """
    parser = methods_parser()
    if {"-h", "--help"} & set(words):
        parser.print_help()
        return 0
    said = parsed(parser, words[1:], parser)
    _check_known("methods", said.methods, WAYS)
    _check_known("families", said.families, tuple(FAMILIES))
    if said.output is not None and not Path(said.output).expanduser().parent.is_dir():
        raise UserError(f"--output {said.output!r} is in a folder that does not exist; make it first.")
    with _quiet():
        trials = all_trials(said.methods, said.families)
        sizes = {way: trained_parameters(way) for way in said.methods}
    console = Console()
    console.print(_table(trials, sizes, said.families), LEGEND, sep="\n")
    failures = list(_failures(trials))
    for failure in failures:
        console.print(failure)
    if said.output is not None:
        Path(said.output).expanduser().write_text(json.dumps(_record(trials, sizes), indent=2) + "\n", encoding="utf-8")
    return FAILED if failures else 0


def all_trials(ways: Sequence[str], families: Sequence[str]) -> Trials:
    """What was found of each way on each family; None where the way is not for such a network."""
    pairs = [(way, family) for way in ways for family in families]
    shown = sys.stderr.isatty()
    bar = track(pairs, "trials", console=Console(stderr=True), disable=not shown, transient=True)
    return {(way, family): _trial(way, family) for way, family in bar}


def _trial(way: str, family: str) -> Found | None:
    with tempfile.TemporaryDirectory() as folder:
        try:
            return tried(way, family, Path(folder))
        except UserError:
            return None


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what the libraries say of each small training; one thread, since small networks are slower with more."""
    ours, threads = logging.getLogger("vitcls"), torch.get_num_threads()
    level = ours.level
    ours.setLevel(logging.ERROR)
    torch.set_num_threads(1)
    try:
        with quiet_transformers(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        ours.setLevel(level)
        torch.set_num_threads(threads)


def _check_known(option: str, given: Sequence[str], known: Sequence[str]) -> None:
    for word in given:
        if word not in known:
            raise UserError(
                f"--{option} names {word!r}{suggestion(word, known)}; what there is: {listing(known, len(known))}."
            )


def cell(found: Found | None) -> str:
    """What was found in letters, such as `TREM`; empty where there was nothing to try."""
    if found is None:
        return ""
    marks = {name: "-" if said is None else "!" if said else LETTERS[name] for name, said in asdict(found).items()}
    return "".join(marks.values())


def _table(trials: Trials, sizes: dict[str, int], families: Sequence[str]) -> Table:
    table = Table(title="Ways of training, tried on a small network of each family")
    table.add_column("method")
    table.add_column("trains of ViT-B/16\n(101 classes)", justify="right")
    table.add_column("kept\nMB", justify="right")
    for family in families:
        table.add_column(family)
    for way, count in sizes.items():
        cells = [cell(trials[way, family]) for family in families]
        table.add_row(way, f"{count:,}", f"{count * BYTES / 1e6:.1f}", *cells)
    return table


def _failures(trials: Trials) -> Iterator[str]:
    for (way, family), found in trials.items():
        for name, said in ({} if found is None else asdict(found)).items():
            if said:
                yield f"{way} on {family}, {name}: {said}"


def _record(trials: Trials, sizes: dict[str, int]) -> dict[str, Any]:
    return {
        way: {
            "parameters": count,
            "bytes": count * BYTES,
            "families": {f: None if found is None else asdict(found) for (w, f), found in trials.items() if w == way},
        }
        for way, count in sizes.items()
    }
