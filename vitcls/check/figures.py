"""The figures of check.html: class counts, sizes and shapes, modes."""

from collections.abc import Mapping
from io import StringIO
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from vitcls.check.findings import Checked

MOST_BARS = 40  # classes with a name each; more become one line from the largest to the smallest
_INK = "#808890"  # readable on white and on black
_COLOURS = {"train": "#3b82c4", "validation": "#d9822b", "test": "#3a9d6e"}
_STYLE: Any = {
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "axes.edgecolor": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "svg.fonttype": "none",
    "svg.hashsalt": "vitcls",  # the same figure has the same text
    "font.family": "sans-serif",
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def class_counts(splits: Mapping[str, Any]) -> str:
    """Images of each class in each split, as SVG text."""
    names = [name.replace("$", r"\$") for name in next(iter(splits.values()))["classes"]]  # no formulas
    few = len(names) <= MOST_BARS
    with mpl.rc_context(_STYLE):
        figure = Figure((7, 0.6 + 0.22 * len(names) * len(splits) if few else 3.2))
        axes = figure.subplots()
        for number, (role, split) in enumerate(splits.items()):
            counts = list(split["classes"].values())
            if few:
                places = [place + 0.8 * number / len(splits) for place in range(len(names))]
                axes.barh(places, counts, height=0.8 / len(splits), color=_COLOURS[role], label=role, align="edge")
            else:
                axes.plot(sorted(counts, reverse=True), color=_COLOURS[role], label=role)
        if few:
            axes.set_yticks([place + 0.4 for place in range(len(names))], names)
            axes.invert_yaxis()
            axes.set_xlabel("images")
        else:
            axes.set_xlabel("classes, from the largest to the smallest")
            axes.set_ylabel("images")
        axes.legend(frameon=False, ncols=len(splits), loc="lower left", bbox_to_anchor=(0, 1))
        return _svg(figure)


def sizes_and_shapes(checked: Mapping[str, Checked], size: int) -> str:
    """Width against height, and the aspect ratios, as SVG text.

    Args:
        checked: by role.
        size: S, drawn as the network's input.
    """
    with mpl.rc_context(_STYLE):
        figure = Figure((7, 3.2))
        sizes, ratios = figure.subplots(1, 2)
        for role, one in checked.items():
            facts = one.read.facts[~one.read.facts["bad"]]
            width, height = facts["width"].astype(float), facts["height"].astype(float)
            some = slice(None, None, max(1, len(facts) // 2000))  # as many points as an eye can tell apart
            sizes.scatter(width[some], height[some], s=6, alpha=0.5, color=_COLOURS[role], label=role, linewidths=0)
            ratios.hist(width / height, bins=40, histtype="step", color=_COLOURS[role], label=role)
        sizes.axvline(size, color=_INK, linewidth=0.8, linestyle=":")
        sizes.axhline(size, color=_INK, linewidth=0.8, linestyle=":")
        sizes.set(xlabel="width, pixels (dotted: the network's input)", ylabel="height, pixels")
        ratios.set(xlabel="width / height", ylabel="images", yscale="log")
        ratios.legend(frameon=False)
        return _svg(figure)


def _svg(figure: Figure) -> str:
    figure.set_layout_engine("tight")
    text = StringIO()
    figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})
    return text.getvalue()[text.getvalue().index("<svg") :]
