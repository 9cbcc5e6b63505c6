"""What goes wrong through the user's words or files, told in one readable sentence."""

from collections.abc import Iterable
from difflib import get_close_matches


class UserError(ValueError):
    """A mistake that the user can mend: the message says what was found, what is valid, what to do.

    The command line prints the message alone; a traceback is for mistakes of ours.

    Args:
        message: the sentence.
        of_one_process: it may have happened in one of several processes, which then has to tell it.
    """

    def __init__(self, message: str, of_one_process: bool = False) -> None:
        super().__init__(message)
        self.of_one_process = of_one_process


class Interrupted(KeyboardInterrupt):
    """A signal ended a training between two steps.

    Args:
        number: of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class LostProcessError(RuntimeError):
    """Another process of the training is gone; the message is the sentence for the user."""


class BadImageError(ValueError):
    """An image that cannot be decoded; the message is the cause, without the file's name."""


def check_range(option: str, value: object, good: bool, valid: str) -> None:
    """Refuse a value of an option, such as `data.flip`, that is not `good`."""
    if not good:
        raise UserError(f"--{option} is {value}; it must be {valid}.")


def suggestion(word: str, valid: Iterable[str]) -> str:
    """For a sentence about an unknown word: ` (did you mean X?)`, or nothing."""
    close = get_close_matches(word, list(valid), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def listing(words: Iterable[str], most: int = 12) -> str:
    """Words for a sentence, comma separated, at most `most` of them and a count of the others."""
    words = list(words)
    shown = ", ".join(words[:most])
    return shown if len(words) <= most else f"{shown}, ... ({len(words) - most} more)"
