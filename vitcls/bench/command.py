"""`python -m vitcls bench`: measures parts of the way of the data and the training, on this machine.

data    images a second of one thread, by a published example's way of loading and by ours
memory  what the metadata of many rows costs the main process and each that decodes
probe   a head that trains on features computed once, against one that trains on the images of each epoch
check   what reading images for `check` costs, against decoding them alone
train   images a second of `fit`, against a bare PyTorch loop
predict images a second of `predict`, against transformers' pipeline and the bare forward pass
serve   images a second of `serve` under load, against `predict`; whether each answer is right
"""

import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from jsonargparse import ArgumentParser, Namespace

from vitcls.bench.checking import bench_check, check_parser
from vitcls.bench.memory import bench_memory, memory_parser
from vitcls.bench.predicting import bench_predict, predict_parser
from vitcls.bench.probing import bench_probe, probe_parser
from vitcls.bench.serving import bench_serve, serve_bench_parser
from vitcls.bench.speeds import bench_data, data_parser
from vitcls.bench.training import bench_train, train_parser
from vitcls.errors import UserError, check_range, suggestion
from vitcls.wording import parsed


class _Bench(NamedTuple):
    parser: Callable[[], ArgumentParser]
    run: Callable[[Namespace], dict[str, Any]]


MEASURED = {
    "data": _Bench(data_parser, bench_data),
    "memory": _Bench(memory_parser, bench_memory),
    "check": _Bench(check_parser, bench_check),
    "probe": _Bench(probe_parser, bench_probe),
    "train": _Bench(train_parser, bench_train),
    "predict": _Bench(predict_parser, bench_predict),
    "serve": _Bench(serve_bench_parser, bench_serve),
}
_COUNTS = ("images", "rounds", "size")


def run_bench(words: list[str]) -> int:
    """Measure, print, write the JSON file.

    Args:
        words: of the command line, the verb first.

    Returns:
        the exit status, 0.

    Raises:
        UserError: a mistake of the user.
    """
    words = words[1:]
    if not words or words[0] in ("-h", "--help"):
        print(f"usage: python -m vitcls bench {{{','.join(MEASURED)}}} [options]\n\n{__doc__}")
        return 0
    with suppress(SystemExit):  # how --help ends
        options = parse(words)
        report = MEASURED[words[0]].run(options)
        if options.output is not None:
            Path(options.output).expanduser().write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return 0


def parse(words: list[str]) -> Namespace:
    """The options of a measurement.

    Args:
        words: its name first.

    Raises:
        UserError: what is wrong with them.
    """
    if words[0] not in MEASURED:
        raise UserError(
            f"{words[0]!r} cannot be measured{suggestion(words[0], MEASURED)}; what can: {', '.join(MEASURED)}."
        )
    parser = MEASURED[words[0]].parser()
    options = parsed(parser, words[1:], parser)
    for name in _COUNTS:
        if name in options:
            check_range(name, options[name], options[name] >= 1, "at least 1")
    if options.output is not None and not Path(options.output).expanduser().parent.is_dir():
        raise UserError(f"--output {options.output!r} is in a folder that does not exist; make it first.")
    return options
