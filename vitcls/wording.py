"""What jsonargparse says about a wrong option, in one sentence instead of a page."""

import inspect
import re
from collections.abc import Iterable
from difflib import get_close_matches
from importlib import import_module

from vitcls.errors import suggestion

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


def sentence(message: str, options: Iterable[str]) -> str:
    """The one sentence that a user needs of a parser's message.

    Args:
        message: of a jsonargparse.ArgumentError.
        options: every valid option, dotted, for the nearest name to a misspelt one.
    """
    for pattern in _UNKNOWN_OPTION:
        if found := pattern.search(message):
            return _unknown_option(found[1], list(options))
    key = ".".join(re.findall(r'Parser key "([^"]+)"', message))
    if found := re.search(r"class_path '([^']+)'.*?Option '([^']+)' is not accepted", message, re.DOTALL):
        return f"{found[1]} (--{key}) has no option {found[2]!r}{suggestion(found[2], _arguments_of(found[1]))}."
    if found := re.search(r"Expected a dot import path string: (\S+)", message):
        return f"--{key}: there is no class {found[1]!r}{suggestion(found[1], _known_classes())}."
    if key and (expected := _expected(message)):
        return f"--{key} is {_value(message)}; it must be {' or '.join(expected)}."
    if key:
        return f"--{key}: {_flat(message).split(': ', 1)[-1]}"
    return _flat(message)


def _unknown_option(name: str, options: list[str]) -> str:
    siblings = [o for o in options if o.rpartition(".")[0] == name.rpartition(".")[0]]
    close = get_close_matches(name, siblings, n=1) or get_close_matches(name, options, n=1)
    near = f" (did you mean --{close[0]}?)" if close else ""
    return f"There is no option --{name}{near}; --help lists them all."


def _expected(message: str) -> list[str]:
    """What was expected, in words, each once."""
    kinds = re.findall(r"Expected an? (.+?)(?:\. Got value|\n|$)", message)
    return list(dict.fromkeys(_in_words(kind) for kind in kinds))


def _in_words(kind: str) -> str:
    if found := re.fullmatch(r"typing\.Literal\[(.+)\]", kind):
        return f"one of {found[1]}"
    if found := re.fullmatch(r"<class '(?:.*\.)?(\w+)'>", kind):
        return _WORDS_OF_TYPES.get(found[1], f"a {found[1]}")
    return kind


def _value(message: str) -> str:
    found = re.findall(r"(?:Got|Given) value: (.+)", message)
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
