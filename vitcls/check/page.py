"""check.html: one file, without a network."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader

from vitcls.check.figures import class_counts, sizes_and_shapes
from vitcls.check.findings import PROBLEMS, Checked
from vitcls.check.sheet import pictures_of

SHOWN = 20  # findings of a kind; check.json has all


def write_page(
    file: Path, found: Mapping[str, Any], checked: Mapping[str, Checked], sheet: Mapping[str, list[str]]
) -> None:
    """Write the page.

    Args:
        file: to write.
        found: what check.json holds.
        checked: the facts, by role, for the figures.
        sheet: sample images by class, from `sample_sheet`.
    """
    template = Environment(loader=PackageLoader("vitcls.check"), autoescape=True).get_template("page.html")
    page = template.render(
        found=found,
        kinds=PROBLEMS,
        most=SHOWN,
        sheet=sheet,
        pictures={kind: pictures_of(found[kind][:SHOWN], checked) for kind in ("leakage", "duplicates", "conflicts")},
        counts=class_counts(found["splits"]),
        sizes=sizes_and_shapes(checked, found["size"]),
    )
    file.write_text(page, encoding="utf-8")
