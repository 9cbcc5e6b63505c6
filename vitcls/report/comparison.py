"""Several runs beside each other: what differs in their configurations, and whether their answers do."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest

from vitcls import __version__, runs
from vitcls.drawing import png, styled, svg
from vitcls.errors import UserError
from vitcls.report.content import RunContent, SplitContent, read_content
from vitcls.report.figures import compared_curves
from vitcls.report.history import read_history
from vitcls.report.measures import LOWER_IS_BETTER, RESAMPLES, SEED
from vitcls.report.page import NOT_SHOWN, environment, judged_by, monitor_of

COMPARED = "comparison.json"
NOT_COMPARED = ("run_name", "trainer.default_root_dir", "ckpt_path")  # where a run lies is no difference of it


@dataclass(frozen=True)
class Paired:
    """Two runs on the same images.

    Attributes:
        images: how many both have answered.
        first_only: images that the first run alone has right.
        second_only: images that the second alone has right.
        difference: share of right answers of the second less that of the first.
        interval: its middle 95 % by bootstrap over the images.
        p: of McNemar's exact test: how likely so uneven a share of the differing answers is between equals.
    """

    images: int
    first_only: int
    second_only: int
    difference: float
    interval: list[float]
    p: float


def write_comparison(folders: list[Path], output: Path) -> Path:
    """Write index.html and comparison.json.

    Args:
        folders: of the runs; each is compared with the first.
        output: folder to write to.

    Returns:
        the page.

    Raises:
        UserError: a run has nothing to report, they have other classes, or the folder is a run's.
    """
    _check_folders(folders, output)
    contents = dict(zip(_names(folders), map(read_content, folders), strict=True))
    _check_alike(contents)
    role = _common_role(list(contents.values()))
    splits = {name: content.splits[role] for name, content in contents.items()} if role else {}
    pairs = {name: _paired(splits[next(iter(splits))], split) for name, split in list(splits.items())[1:]}
    keys = differing({name: content.config for name, content in contents.items()})
    output.mkdir(parents=True, exist_ok=True)
    record = {
        "role": role,
        "runs": {name: _plain_figures(split) for name, split in splits.items()},
        "differing": keys,
        "against_first": {name: vars(pair) for name, pair in pairs.items() if pair is not None},
    }
    page = environment().get_template("comparison.html")
    values: dict[str, Any] = {"contents": contents, "role": role, "splits": splits, "pairs": pairs, "keys": keys}
    values |= {"curves": _drawn(contents, output), "version": __version__}
    values |= {"lower": LOWER_IS_BETTER, "not_shown": NOT_SHOWN}
    values["judged"] = {name: judged_by(content) for name, content in contents.items()}
    runs.write_text(output / COMPARED, json.dumps(record, indent=1) + "\n")
    runs.write_text(output / runs.PAGE, page.render(**values))
    return output / runs.PAGE


def _drawn(contents: Mapping[str, RunContent], output: Path) -> str:
    """The learning curves as SVG; they are also written as PNG."""
    chosen_by = [monitor_of(content) for content in contents.values()]
    names = dict.fromkeys(["val/loss", *(name for name in chosen_by if name.startswith("val/"))])
    with styled():
        curves = compared_curves({name: read_history(content.run) for name, content in contents.items()}, list(names))
        (output / "curves.png").write_bytes(png(curves))
        return svg(curves)


def _check_folders(folders: list[Path], output: Path) -> None:
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise UserError("The same run is named twice; a comparison is of different runs.")
    if (output / runs.CONFIG).exists():
        raise UserError(f"--output {str(output)!r} is the folder of a run; give one of its own for the comparison.")
    if output.is_dir() and any(output.iterdir()) and not (output / COMPARED).is_file():
        raise UserError(f"--output {str(output)!r} holds something else than a comparison; give a folder of its own.")


def _plain_figures(split: SplitContent) -> dict[str, Any]:
    return {name: value for name, value in split.figures.items() if name not in NOT_SHOWN}


def differing(configs: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """The keys of which the values are not the same in all configurations, with the value of each run."""
    flat = {name: _flat(config) for name, config in configs.items()}
    keys = sorted({key for of_run in flat.values() for key in of_run} - set(NOT_COMPARED))
    found = {key: {name: of_run.get(key) for name, of_run in flat.items()} for key in keys}
    return {key: values for key, values in found.items() if len({repr(value) for value in values.values()}) > 1}


def _flat(config: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in config.items():
        found |= _flat(value, f"{above}{key}.") if isinstance(value, Mapping) else {f"{above}{key}": value}
    return found


def _names(folders: list[Path]) -> list[str]:
    """The shortest ends of the paths that tell the runs apart."""
    parts = [folder.resolve().parts for folder in folders]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-length:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    raise AssertionError("the folders differ")


def _check_alike(contents: Mapping[str, RunContent]) -> None:
    (first, reference), *others = contents.items()
    for name, content in others:
        one, other = reference.headline.outputs, content.headline.outputs
        if one.task != other.task or set(one.labels) != set(other.labels):
            raise UserError(
                f"{first} and {name} cannot be compared: they have other classes or another task "
                f"({one.task} of {len(one.labels)}, {other.task} of {len(other.labels)})."
            )


def _common_role(contents: list[RunContent]) -> str | None:
    """The split, test first, that all runs have answered, with the same rows."""
    for role in ("test", "validation"):
        if all(role in content.splits for content in contents):
            outputs = [content.splits[role].outputs for content in contents]
            images = ((one.about["fingerprint"], one.about.get("sizes"), one.ids.tobytes()) for one in outputs)
            if len(set(images)) == 1:
                return role
    return None


def _paired(first: SplitContent, second: SplitContent) -> Paired | None:
    """Of multiclass runs on the same rows."""
    if first.outputs.task == "multilabel":
        return None
    one, other = _right(first), _right(second)
    first_only, second_only = int((one & ~other).sum()), int((other & ~one).sum())
    differ = first_only + second_only
    gain = other.astype(float) - one.astype(float)
    random = np.random.default_rng(SEED)
    resampled = [gain[random.integers(len(gain), size=len(gain))].mean() for _ in range(RESAMPLES)]
    p = binomtest(second_only, differ).pvalue if differ else 1.0
    interval = np.percentile(resampled, (2.5, 97.5)).tolist()
    return Paired(len(gain), first_only, second_only, float(gain.mean()), interval, float(p))


def _right(split: SplitContent) -> NDArray[np.bool_]:
    return split.outputs.logits.argmax(axis=1) == split.outputs.targets
