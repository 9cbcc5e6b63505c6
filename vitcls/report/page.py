"""report/: index.html, one file that needs no network, metrics.json and the figures."""

import base64
import json
import math
from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader
from matplotlib.figure import Figure

from vitcls import __version__, runs
from vitcls.drawing import png, styled, svg
from vitcls.outputs import Outputs
from vitcls.report import figures
from vitcls.report.content import RunContent, SplitContent
from vitcls.report.history import read_history
from vitcls.report.measures import LOWER_IS_BETTER
from vitcls.report.selection import Suspect
from vitcls.run_config import choice_of, network_of, trained_of

HEADLINES = {
    "multiclass": ("accuracy", "balanced_accuracy", "f1_macro", "log_loss"),
    "multilabel": ("map", "f1_macro", "log_loss"),
}
NOT_DEFINED = "–"  # noqa: RUF001 - a dash of the width of a digit
NOT_SHOWN = ("images", "intervals", "of_classes", "uncalibrated", "temperature")  # where they have a place of their own


def write_page(content: RunContent) -> Path:
    """Write the folder `report/` of a run, over the one of before; the page."""
    folder = content.run / runs.REPORT
    (folder / runs.FIGURES).mkdir(parents=True, exist_ok=True)
    drawn = _drawn(content, folder / runs.FIGURES)
    page = (
        environment()
        .get_template("report.html")
        .render(
            version=__version__,
            name=content.run.resolve().name,
            content=content,
            head=content.headline,
            headlines=_headlines(content.headline),
            judged=judged_by(content),
            drawn=drawn,
            shown={role: _shown(split) for role, split in content.splits.items()},
            config=yaml.safe_dump(content.config, sort_keys=False, allow_unicode=True),
            network=_network(content),
            lower=LOWER_IS_BETTER,
            not_shown=NOT_SHOWN,
            most_confused=figures.MOST_CONFUSED,
            named=figures.NAMED_CLASSES,
        )
    )
    runs.write_text(folder / "metrics.json", json.dumps(measured(content), indent=1) + "\n")
    runs.write_text(folder / runs.PAGE, page)
    return folder / runs.PAGE


def measured(content: RunContent) -> dict[str, Any]:
    """What metrics.json holds: every figure of every split, and the suspects."""
    return {
        "vitcls": __version__,
        "run": content.run.resolve().name,
        "judged_by": judged_by(content),
        **{role: {**split.outputs.about, **split.figures} for role, split in content.splits.items() if role != "train"},
        "suspects": {
            role: [_suspect(split, s) for s in split.chosen.suspects] for role, split in content.splits.items()
        },
    }


def judged_by(content: RunContent) -> str:
    """On what the weights were chosen and on what they are measured, in two sentences."""
    return f"{_chosen_by(content)} {_measured_on(content)}"


def _chosen_by(content: RunContent) -> str:
    epoch = content.written.get("validation", {}).get("epoch")
    weights = "The weights" if epoch is None else f"The weights (epoch {epoch})"
    if _are_last(content):
        return f"{weights} are the last ones, chosen by no figure."
    validated = content.splits.get("validation")
    images = f" of {_images_of(validated.outputs):,} validation images" if validated else ""
    return f"{weights} were chosen by {monitor_of(content)}{images}."


def _measured_on(content: RunContent) -> str:
    test, written = content.splits.get("test"), content.written.get("test", {})
    if test is None:
        why = "No answers of these weights to test data were kept" if written else "No test data was read"
        which = "the validation data" if _are_last(content) else "the data that chose: somewhat too good"
        return f"{why}, so the figures are of {which}."
    about = test.outputs.about
    # Also a test without a report reads the data.
    reads = (written if written.get("fingerprint") == about["fingerprint"] else about).get("reads", 1)
    times = "once" if reads == 1 else f"{reads} times"
    figures = f"The figures are of {_images_of(test.outputs):,} test images, read {times} for this run."
    chose = about.get("chose_the_weights")
    return f"{figures} They are among those that chose the weights, so the figures are too good." if chose else figures


def _are_last(content: RunContent) -> bool:
    """Whether the weights were kept for being the last, whatever their figures."""
    checkpoint = content.written.get("validation", {}).get("checkpoint")
    return checkpoint == runs.LAST or monitor_of(content) == "epoch"


def _images_of(outputs: Outputs) -> int:
    """How many a split has that can be read; of a large one fewer were asked about for the report."""
    about = outputs.about
    return about["rows"] - about["unreadable"] if "rows" in about else len(outputs)


def monitor_of(content: RunContent) -> str:
    """The figure by which the best epoch was chosen."""
    return choice_of(content.config, content.headline.outputs.task).monitor


def _network(content: RunContent) -> str:
    parts = content.written.get("soup", {}).get("mean_of")
    return f"The mean of the weights of {', '.join(parts)}" if parts else described(content.config)


def described(config: Mapping[str, Any]) -> str:
    """Which network was trained, and what of it."""
    if not config.get("model"):
        return "a network"
    source, trained = network_of(config) or "a network from scratch", trained_of(config)
    if trained.startswith("last"):
        how = f"its {trained}"
    else:
        how = {"all": "all weights", "head": "the head alone", "bias": "the head and biases"}.get(
            trained, f"{trained} adapter"
        )
    return f"{Path(source).name if Path(source).is_absolute() else source}, {how}"


def _headlines(split: SplitContent) -> list[dict[str, Any]]:
    chosen = HEADLINES[split.outputs.task]
    return [
        {"name": name, "value": split.figures[name], "interval": split.figures["intervals"].get(name)}
        for name in chosen
    ]


def _drawn(content: RunContent, folder: Path) -> dict[str, str]:
    """The figures by name, as SVG; each is also written as SVG and PNG."""
    outputs = content.headline.outputs
    kept = content.written.get("validation", {}).get("step")
    with styled():
        made: dict[str, Figure] = {
            "reliability": figures.reliability_diagram(outputs),
            "scores": figures.score_histograms(outputs),
            "ranking": figures.ranking_curves(outputs),
        }
        curves = read_history(content.run)
        if curves:
            made["learning"] = figures.learning_curves(curves, monitor_of(content), kept)
        if outputs.task == "multiclass":
            made["confusion"] = figures.confusion_matrix(outputs)
        drawn = {name: svg(figure) for name, figure in made.items()}
        for name, figure in made.items():
            (folder / f"{name}.svg").write_text(drawn[name], encoding="utf-8")
            (folder / f"{name}.png").write_bytes(png(figure))
    return drawn


def _shown(split: SplitContent) -> dict[str, Any]:
    """The images of a split that the page shows, with what is said under them."""
    outputs, chosen = split.outputs, split.chosen
    scores = outputs.probabilities()

    def card(position: int, kind: str = "image") -> dict[str, str]:
        jpeg = split.pictures[kind].get(int(outputs.ids[position]))
        return {
            "picture": "data:image/jpeg;base64," + base64.b64encode(jpeg).decode() if jpeg else "",
            "file": outputs.files[position],
            "short": _short_path(outputs.files[position]),
            **_said(outputs, scores, position),
        }

    return {
        "mistakes": [card(n) for n in chosen.mistakes],
        "doubtful": [card(n) for n in chosen.doubtful],
        "pairs": [
            {
                "target": outputs.labels[pair.target],
                "taken_for": outputs.labels[pair.taken_for],
                "images": pair.images,
                "shown": [card(n) for n in pair.shown],
                "beside": [card(n) for n in pair.beside],
            }
            for pair in chosen.pairs
        ],
        "suspects": [{**card(s.position), **_suspect(split, s)} for s in chosen.suspects],
        "attributed": [
            {**card(n), "looked": card(n, "attribution")["picture"]}
            for n in chosen.attributed
            if int(outputs.ids[n]) in split.pictures["attribution"]
        ],
    }


def _said(outputs: Outputs, scores: Any, position: int) -> dict[str, str]:
    """The label of an image and the answer to it, as text."""
    if outputs.task == "multiclass":
        best = int(outputs.logits[position].argmax())
        return {
            "label": outputs.labels[int(outputs.targets[position])],
            "answer": outputs.labels[best],
            "score": f"{scores[position, best]:.2f}",
        }
    there = scores[position] >= outputs.thresholds
    return {
        "label": _listed(outputs.labels, outputs.targets[position]),
        "answer": _listed(outputs.labels, there),
        "score": "",
    }


def _short_path(file: str) -> str:
    """The file and its folder, of a path."""
    return "/".join(PurePath(file).parts[-2:]) if PurePath(file).is_absolute() else file


def _listed(labels: list[str], chosen: Any) -> str:
    return ", ".join(label for label, one in zip(labels, chosen, strict=True) if one) or "none"


def _suspect(split: SplitContent, suspect: Suspect) -> dict[str, Any]:
    outputs = split.outputs
    found: dict[str, Any] = {"file": outputs.files[suspect.position], "id": int(outputs.ids[suspect.position])}
    if outputs.task == "multiclass":
        found |= {"label": outputs.labels[suspect.label], "likely": outputs.labels[suspect.likely]}
    else:
        has = bool(outputs.targets[suspect.position, suspect.label])
        likely = f"{'without' if has else 'with'} {outputs.labels[suspect.label]}"
        found |= {"label": _listed(outputs.labels, outputs.targets[suspect.position]), "likely": likely}
    return {**found, "margin": suspect.margin}


def environment() -> Environment:
    """The templates of reports, with their filters."""
    environment = Environment(
        loader=PackageLoader("vitcls.report"), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["figure"] = _figure
    environment.filters["option"] = _option
    environment.filters["words"] = lambda name: str(name).replace("_", " ")
    return environment


def _option(value: Any) -> str:
    """The value of an option as YAML has it in one line."""
    return NOT_DEFINED if value is None else json.dumps(value, ensure_ascii=False)


def _figure(value: Any) -> str:
    """A number with as many digits as it deserves."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return NOT_DEFINED
    return f"{value:,}" if isinstance(value, int) else f"{value:.3f}"
