"""What jsonargparse says about a wrong option, in one sentence instead of a page."""

import inspect
import re
from collections.abc import Iterable
from difflib import get_close_matches
from importlib import import_module

from jsonargparse import ArgumentError, ArgumentParser, Namespace

from vitcls.errors import UserError, suggestion

# A guessed option is a silent one, and a parser that exits prints a page before the reason.
PARSER_OPTIONS = {"allow_abbrev": False, "exit_on_error": False}
LIKE = 0.65  # of 1: `epochs` is not taken for `freeze_epochs` (0.63)
_UNKNOWN_OPTION = (
    re.compile(r"unrecognized arguments: --([^\s=]+)"),
    re.compile(r"does not accept option '([^']+)'"),
)
_WORDS_OF_TYPES = {
    "NoneType": "null",
    "int": "a whole number",
    "float": "a number",
    "str": "a text",
    "bool": "true or false",
    "tuple": "a list",
}


def parsed(parser: ArgumentParser, words: list[str], options_of: ArgumentParser) -> Namespace:
    """Parse a command line.

    Args:
        parser: that understands the words.
        words: of the command line.
        options_of: the parser whose options a misspelt one is compared with.

    Raises:
        UserError: tells what is wrong with the words, in one sentence.
    """
    try:
        return parser.parse_args(words)
    except ArgumentError as error:
        raise UserError(sentence(str(error), options_of.get_defaults(skip_validation=True).keys())) from error
    except UnicodeDecodeError as error:
        raise UserError(f"A configuration file is not UTF-8 text ({error}); save it as UTF-8.") from error


def sentence(message: str, options: Iterable[str]) -> str:
    """The one sentence that a user needs of a parser's message.

    Args:
        message: of a jsonargparse.ArgumentError.
        options: every valid option, dotted, for the nearest name to a misspelt one.
    """
    for pattern in _UNKNOWN_OPTION:
        if found := pattern.search(message):
            return _unknown_option(found[1], list(options))
    if found := re.search(r"Unexpected config: (.+)", message):
        return f"A configuration file holds {found[1]!r}; it must hold keys such as trainer:, model: and data:."
    if (found := re.search(r"Option '([^']+)' is not accepted", message)) and "class_path" not in message:
        return _unknown_option(found[1], list(options))  # a key of a configuration file
    key = ".".join(dict.fromkeys(re.findall(r'Parser key "([^"]+)"', message)))
    return _about_a_class(message, key) or _about_a_value(message, key) or _flat(message)


def _unknown_option(name: str, options: list[str]) -> str:
    near = f" (did you mean --{nearest}?)" if (nearest := _nearest(name, options)) else ""
    return f"There is no option --{name}{near}; --help lists them all."


def _nearest(name: str, options: list[str]) -> str | None:
    """The likeliest option: a sibling spelt nearly so, else one that is called so elsewhere.

    Only last parts are compared: a shared first part would make all of a group look alike.
    """
    parent, _, leaf = name.rpartition(".")
    siblings = {o.rpartition(".")[2]: o for o in options if o.rpartition(".")[0] == parent}
    close = [siblings[sibling] for sibling in get_close_matches(leaf, siblings, n=1, cutoff=LIKE)]
    elsewhere = [o for o in options if o.rpartition(".")[2] == leaf]
    whole = [] if siblings else get_close_matches(name, options, n=1)
    return next(iter([*close, *elsewhere, *whole]), None)


def _about_a_class(message: str, key: str) -> str | None:
    """Of a class given by its path: a wrong argument, or a wrong path."""
    if found := re.search(r"Option '([^']+)' is not accepted", message):
        paths = re.findall(r"class_path(?:=| )'([\w.]+)'", message)
        return f"{paths[0]} (--{key}) has no option {found[1]!r}{suggestion(found[1], _arguments_of(paths[0]))}."
    if found := re.search(r"Expected a dot import path string: (\S+)", message):
        return f"--{key}: there is no class {found[1]!r}{suggestion(found[1], _known_classes())}."
    if found := re.search(
        r"Problem with given class_path '([\w.]+)':\s+(module .+ has no attribute .+|No module .+)", message
    ):
        name = found[1].rpartition(".")[2]
        return f"--{key}: there is no class {found[1]!r}{suggestion(name, _known_classes())}."
    if found := re.search(r"Import path (\S+) does not correspond to a subclass of (\w+)", message):
        return f"--{key}: {found[1]} is no {found[2]}."
    return None


def _about_a_value(message: str, key: str) -> str | None:
    if key and (expected := _expected(message)):
        return f"--{key} is {_value(message)}; it must be {' or '.join(expected)}."
    if found := re.search(r"File does not exist: '?([^']+)'?", message):
        return f"--{key}: there is no file {found[1]}."
    if key and (found := re.search(r"Unable to load config '?(.+?)'?$", message, re.MULTILINE)):
        return f"--{key} is {found[1]!r}; it has options of its own, such as --{key}.NAME VALUE."
    return f"--{key}: {_flat(message).split(': ', 1)[-1]}" if key else None


def _expected(message: str) -> list[str]:
    """What was expected, in words, each once; of a class' argument only that argument's."""
    inner = message.rpartition('Parser key "')[2]
    kinds = re.findall(r"Expected an? (.+?)(?:\. Got value|\n|$)", inner)
    if "Got value: Namespace(" in message or "Problem with given class_path" in message:
        kinds = kinds[:1]  # what follows is about the class as a whole
    return list(dict.fromkeys(_in_words(kind) for kind in kinds))


def _in_words(kind: str) -> str:
    if found := re.fullmatch(r"typing\.Literal\[(.+)\]", kind):
        return f"one of {found[1]}"
    if found := re.fullmatch(r"<class '(?:.*\.)?(\w+)'>", kind):
        return _WORDS_OF_TYPES.get(found[1], f"a {found[1]}")
    if found := re.fullmatch(r"tuple with (\d+) elements", kind):
        return f"a list of {found[1]}"
    return kind


def _value(message: str) -> str:
    found = re.findall(r"(?:Got|Given) value: (.+?)(?=\. Got value: |$)", message, re.MULTILINE)
    return repr(found[0]) if found else "not valid"


def _arguments_of(class_path: str) -> list[str]:
    module, _, name = class_path.rpartition(".")
    return list(inspect.signature(getattr(import_module(module), name)).parameters)


def _known_classes() -> list[str]:
    from lightning.pytorch import callbacks, loggers
    from torch import optim

    from vitcls import callbacks as ours

    return [*callbacks.__all__, *loggers.__all__, *ours.__all__, *optim.__all__]


def _flat(message: str) -> str:
    return " ".join(message.split())
