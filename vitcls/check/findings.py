"""What the facts about all images mean: broken, double, leaking, mislabelled, small, cut."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vitcls.check.duplicates import same_pictures
from vitcls.check.reading import MODES, Facts, SplitFacts
from vitcls.data.preprocess import ImageSpec
from vitcls.data.rows import TableImages
from vitcls.data.splits import Split

# What --fail_on can name, and what each means.
PROBLEMS = {
    "corrupt": "files that cannot be decoded",
    "leakage": "the same picture in two splits",
    "duplicates": "the same picture twice in one split",
    "conflicts": "the same picture under two classes",
    "small": "images less than half as wide or high as the network's input",
}
CUT_MUCH = 1 / 2  # share of an image's area beyond which a centre crop is said to cut it


@dataclass(frozen=True)
class Checked:
    """A split that was read."""

    split: Split
    read: SplitFacts


def findings(checked: Mapping[str, Checked], labels: Sequence[str], spec: ImageSpec) -> dict[str, Any]:
    """Everything that check.json holds about the images, as plain values.

    Args:
        checked: by role.
        labels: class names in output order.
        spec: what the network takes.
    """
    named = _Named(checked, labels)
    facts = np.concatenate([one.read.facts for one in checked.values()])
    same = [[named[i] for i in group] for group in same_pictures(facts)]
    found: dict[str, Any] = {
        "splits": {role: _of_split(one, labels) for role, one in checked.items()},
        "corrupt": [named[int(i)] | {"cause": named.cause(int(i))} for i in np.flatnonzero(facts["bad"])],
        "leakage": [group for group in same if _differ(group, "split")],
        "duplicates": [group for group in same if not _differ(group, "split")],
        "conflicts": [group for group in same if _differ(group, "class")],
        "small": [named[int(i)] for i in np.flatnonzero(_small(facts, spec))],
        "cut": [named[int(i)] for i in np.flatnonzero(_cut(facts, spec) > CUT_MUCH)],
    }
    return found | {"problems": {name: len(found[name]) for name in PROBLEMS if found[name]}}


class _Named:
    """The images of all splits, one after the other, as a person would look for them."""

    def __init__(self, checked: Mapping[str, Checked], labels: Sequence[str]) -> None:
        self._checked = checked
        self._labels = labels
        self._images = {role: TableImages(one.split, files_have_names=True) for role, one in checked.items()}

    def __getitem__(self, index: int) -> dict[str, Any]:
        role, position = self._place(index)
        images = self._images[role]
        label = ", ".join(self._labels[k] for k in self._checked[role].split.classes_of(position))
        return {"split": role, "row": images.id(position), "name": images.name(position), "class": label}

    def cause(self, index: int) -> str:
        """Why it cannot be decoded."""
        role, position = self._place(index)
        return self._checked[role].read.causes[position]

    def _place(self, index: int) -> tuple[str, int]:
        for role, one in self._checked.items():
            if index < len(one.split):
                return role, int(index)
            index -= len(one.split)
        raise IndexError(index)


def _differ(group: Sequence[Mapping[str, Any]], key: str) -> bool:
    return len({image[key] for image in group}) > 1


def _of_split(one: Checked, labels: Sequence[str]) -> dict[str, Any]:
    facts = one.read.facts[~one.read.facts["bad"]]
    counts = one.split.class_counts(len(labels))
    modes = np.bincount(facts["mode"], minlength=len(MODES))
    return {
        "source": one.split.name,
        "images": len(one.split),
        "classes": dict(zip(labels, counts.tolist(), strict=True)),
        "imbalance": float(counts.max() / counts[counts > 0].min()) if counts.any() else 0.0,
        "modes": {mode: int(count) for mode, count in zip(MODES, modes, strict=True) if count},
        "turned_by_exif": int((facts["orientation"] > 1).sum()),
        "widths": _spread(facts["width"]),
        "heights": _spread(facts["height"]),
        "kilobytes": _spread(facts["file_bytes"] / 1000),
        "decode_ms": _spread(facts["seconds"] * 1000),
    }


def _spread(values: Any) -> dict[str, float] | None:
    """Least, median and most."""
    if not len(values):
        return None
    return {"least": float(values.min()), "median": float(np.median(values)), "most": float(values.max())}


def _small(facts: Facts, spec: ImageSpec) -> np.ndarray:
    return ~facts["bad"] & (np.minimum(facts["width"], facts["height"]) < spec.size / 2)


def _cut(facts: Facts, spec: ImageSpec) -> np.ndarray:
    """(N,) share of each image's area that the evaluation's centre crop leaves out; 0 where it does not crop."""
    if spec.resize != "crop":
        return np.zeros(len(facts))
    short = np.minimum(facts["width"], facts["height"]).astype(float)
    long = np.maximum(1, np.maximum(facts["width"], facts["height"]).astype(float))
    kept = min(1.0, spec.size / spec.resize_to)
    return np.where(facts["bad"], 0, 1 - kept**2 * short / long)
