import contextlib
import functools
import re
import shlex
from pathlib import Path

import pytest
import yaml
from jsonargparse import ArgumentError

from vitcls.__main__ import VERBS
from vitcls.bench.command import parse as parse_bench
from vitcls.check.command import CheckCLI
from vitcls.cli import VitclsCLI
from vitcls.export.command import export_parser
from vitcls.report.command import report_parser
from vitcls.serve.command import serve_parser
from vitcls.soup.command import soup_parser

ROOT = Path(__file__).parents[1]
READMES = [ROOT / "README.md", ROOT / "README.zh.md"]
PAGES = [*READMES, ROOT / "configs" / "README.md", *sorted((ROOT / "configs").rglob("*.yaml"))]
COMMAND = re.compile(rf"python -m vitcls ((?:{'|'.join(VERBS)}) .+?)(?:`|$)", re.MULTILINE)


def commands() -> list[str]:
    joined = [re.sub(r"\\\n#?\s*", " ", page.read_text()) for page in PAGES]
    return sorted(
        {
            found.strip()
            for text in joined
            for found in COMMAND.findall(text)
            if "..." not in found and "--help" not in found
        }
    )


class Parser(VitclsCLI):
    """The real parser, without what follows on parsing."""

    def parse_arguments(self, parser, args) -> None:
        raise StopIteration


class CheckParser(CheckCLI):
    """The same of check; it does parse."""

    def parse_arguments(self, parser, args) -> None:
        super().parse_arguments(parser, args)
        raise StopIteration


PARSERS = {"soup": soup_parser, "report": report_parser, "export": export_parser, "serve": serve_parser}


@functools.cache
def parser_of(verb: str):
    cli = Parser.__new__(Parser)
    with contextlib.suppress(StopIteration):
        cli.__init__([verb], [])
    return cli.parser


@pytest.mark.parametrize("command", commands())
def test_every_command_of_the_documents_is_understood(command):
    words = [str(ROOT / word) if word.startswith("configs/") else word for word in shlex.split(command)]
    if words[0] == "bench":
        parse_bench(words[1:])
        return
    try:
        if words[0] == "check":
            with contextlib.suppress(StopIteration):
                CheckParser(words[1:])
        elif words[0] in PARSERS:
            PARSERS[words[0]]().parse_args(words[1:])
        else:
            parser_of(words[0]).parse_args(words)
    except ArgumentError as error:
        pytest.fail(str(error))


def test_the_documents_do_have_commands():
    assert len(commands()) >= 8


OPTION_ROWS = [re.findall(r"^\| .+? \| (.+) \|$", page.read_text(), re.MULTILINE) for page in READMES]


@pytest.mark.parametrize("option", sorted({row for rows in OPTION_ROWS for row in rows}))
def test_every_option_of_the_table_is_understood(option):
    for words in re.findall(r"`(--[^`]+)`", option):
        try:
            parser_of("fit").parse_args(["fit", "--model.adapter.r", "4", *shlex.split(words)])
        except ArgumentError as error:
            pytest.fail(str(error))


def test_the_readme_names_every_file_of_a_run_folder():
    from vitcls import runs

    text = (ROOT / "README.md").read_text()
    for name in (
        runs.CONFIG,
        runs.SPLITS,
        runs.HISTORY,
        runs.METRICS,
        runs.BEST,
        runs.LAST,
        runs.MODEL,
        runs.THRESHOLDS,
        runs.SESSIONS,
        runs.OUTPUTS,
        runs.REPORT,
        runs.EXPORTED,
    ):
        assert name in text


def test_every_config_is_in_the_table_of_configs():
    text = (ROOT / "configs" / "README.md").read_text()
    for config in sorted((ROOT / "configs").glob("*.yaml")):
        assert config.name in text
        assert yaml.safe_load(config.read_text())["run_name"] == config.stem


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_figure_is_left_to_be_filled_in(page):
    assert not re.search(r"\b[A-Z]+_(ROW|NOTE|RESULT|TEST)\b", page.read_text())
