"""How the figures of pages look: readable on white and on black, without a window."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO, StringIO
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

INK = "#808890"  # readable on white and on black
COLOURS = {"train": "#3b82c4", "validation": "#d9822b", "test": "#3a9d6e"}
SERIES = ("#3b82c4", "#d9822b", "#3a9d6e", "#b0569f", "#c2464a", "#6f7f1f", "#4fa3a5", "#8a6fc2")
_STYLE: Any = {
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.edgecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "svg.fonttype": "none",
    "svg.hashsalt": "vitcls",  # the same figure has the same text
    "font.family": "sans-serif",
    "axes.spines.top": False,
    "axes.spines.right": False,
}


@contextmanager
def styled() -> Iterator[None]:
    """Figures that are made and written in this block look alike."""
    with mpl.rc_context(_STYLE), warnings.catch_warnings():
        # A PNG lacks what the font has not; the page's own figures are text, and browsers have fonts for it.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield


def plain(name: str) -> str:
    """A name as text of a figure: matplotlib takes what stands between dollars for a formula."""
    return name.replace("$", r"\$")


def svg(figure: Figure) -> str:
    """The figure as an SVG element."""
    figure.set_layout_engine("tight")
    text = StringIO()
    figure.savefig(text, format="svg", transparent=True, bbox_inches="tight", metadata={"Date": None})
    return text.getvalue()[text.getvalue().index("<svg") :]


def png(figure: Figure) -> bytes:
    """The figure as a PNG, on white."""
    figure.set_layout_engine("tight")
    content = BytesIO()
    figure.savefig(content, format="png", dpi=120, facecolor="white", bbox_inches="tight")
    return content.getvalue()
