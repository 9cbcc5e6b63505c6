"""The figures of check.html: class counts, sizes and shapes, modes."""

from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure

from vitcls.check.findings import Checked
from vitcls.drawing import COLOURS, INK, plain, styled, svg

MOST_BARS = 40  # classes with a name each; more become one line from the largest to the smallest


def class_counts(splits: Mapping[str, Any]) -> str:
    """Images of each class in each split, as SVG text."""
    names = [plain(name) for name in next(iter(splits.values()))["classes"]]
    few = len(names) <= MOST_BARS
    with styled():
        figure = Figure((7, 0.6 + 0.22 * len(names) * len(splits) if few else 3.2))
        axes = figure.subplots()
        for number, (role, split) in enumerate(splits.items()):
            counts = list(split["classes"].values())
            if few:
                places = [place + 0.8 * number / len(splits) for place in range(len(names))]
                axes.barh(places, counts, height=0.8 / len(splits), color=COLOURS[role], label=role, align="edge")
            else:
                axes.plot(sorted(counts, reverse=True), color=COLOURS[role], label=role)
        if few:
            axes.set_yticks([place + 0.4 for place in range(len(names))], names)
            axes.invert_yaxis()
            axes.set_xlabel("images")
        else:
            axes.set_xlabel("classes, from the largest to the smallest")
            axes.set_ylabel("images")
        axes.legend(frameon=False, ncols=len(splits), loc="lower left", bbox_to_anchor=(0, 1))
        return svg(figure)


def sizes_and_shapes(checked: Mapping[str, Checked], size: int) -> str:
    """Width against height, and the aspect ratios, as SVG text.

    Args:
        checked: by role.
        size: S, drawn as the network's input.
    """
    with styled():
        figure = Figure((7, 3.2))
        sizes, ratios = figure.subplots(1, 2)
        for role, one in checked.items():
            facts = one.read.facts[~one.read.facts["bad"]]
            width, height = facts["width"].astype(float), facts["height"].astype(float)
            some = slice(None, None, max(1, len(facts) // 2000))  # as many points as an eye can tell apart
            sizes.scatter(width[some], height[some], s=6, alpha=0.5, color=COLOURS[role], label=role, linewidths=0)
            ratios.hist(width / height, bins=40, histtype="step", color=COLOURS[role], label=role)
        sizes.axvline(size, color=INK, linewidth=0.8, linestyle=":")
        sizes.axhline(size, color=INK, linewidth=0.8, linestyle=":")
        sizes.set(xlabel="width, pixels (dotted: the network's input)", ylabel="height, pixels")
        ratios.set(xlabel="width / height", ylabel="images", yscale="log")
        ratios.legend(frameon=False)
        return svg(figure)
