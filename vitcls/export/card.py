"""The model card of an exported folder, made of what was measured; nothing is said that no file of the run tells."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from vitcls import runs
from vitcls.export.shipped import Shipped
from vitcls.manifest import MODEL_FOLDERS, Manifest
from vitcls.models.exported import EXECUTING
from vitcls.models.folder import how_to_load
from vitcls.run_config import network_of, trained_of

_SHOWN = ("accuracy", "balanced_accuracy", "f1_macro", "map", "log_loss", "ece")
_LIBRARIES = {  # the Hub's names of them
    "huggingface": "transformers",
    "adapter": "peft",
    "onnx": "onnx",
    "onnx-int8": "onnx",
    "openvino": "openvino",
    "openvino-int8": "openvino",
    "torch": "pytorch",
}
_ANSWERED = {"test": "test images", "validation": "validation images, by which the weights were chosen"}


def write_card(folder: Path, shipped: Shipped, manifest: Manifest, licence: str) -> None:
    """Write README.md, with the metadata that the Hub reads.

    Args:
        folder: with the exported files.
        shipped: what was exported.
        manifest: of the folder, with its gate.
        licence: of the data, as its own metadata says it; empty where it says none.
    """
    run = shipped.checkpoint.run
    config = runs.read_config(run) if run else {}
    judged, figures = _figures(run, shipped.content["global_step"])
    parts = [
        f"---\n{_metadata(manifest, config, judged, figures)}---",
        f"# {_title(manifest)}",
        _what(manifest, config),
        f"## Run it\n\n{_usage(shipped, manifest)}",
        f"## Figures\n\n{_table(judged, figures)}",
        f"## Data\n\n{_data(config, run, licence)}",
        f"## Training\n\n{_training(config, run)}",
        f"## This export\n\n{_gate(manifest)}",
        f"## Limits\n\n{_limits(manifest)}",
        f"## Classes\n\n{_classes(manifest)}",
    ]
    (folder / "README.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def is_on_hub(name: str) -> bool:
    """Whether a name is an id of the Hub, and no place on this machine."""
    return bool(name) and name[0] not in "/.~" and name.count("/") <= 1 and not Path(name).exists()


def _metadata(manifest: Manifest, config: Mapping[str, Any], judged: str, figures: Mapping[str, Any]) -> str:
    """YAML; what is on this machine alone is nothing to others."""
    content: dict[str, Any] = {
        "library_name": _LIBRARIES[manifest.format],
        "pipeline_tag": "image-classification",
        "tags": ["vitcls"],
    }
    base, dataset = network_of(config), _section(config, "data").get("dataset")
    if is_on_hub(base) and _section(config, "model").get("checkpoint"):
        content["base_model"] = base
    if isinstance(dataset, str) and is_on_hub(dataset) and dataset != "digits":
        content["datasets"] = [dataset]
    measured = [{"type": name, "value": figures[name]} for name in ("accuracy", "f1_macro", "map") if name in figures]
    if measured:
        result = {
            "task": {"type": "image-classification"},
            "dataset": {"name": _name(str(dataset or "local images")), "type": "image-classification", "split": judged},
            "metrics": measured,
        }
        content["model-index"] = [{"name": _title(manifest), "results": [result]}]
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True)


def _title(manifest: Manifest) -> str:
    kind = "Image classifier" if manifest.task == "multiclass" else "Image tagger"
    return f"{kind}, {len(manifest.labels)} classes"


def _what(manifest: Manifest, config: Mapping[str, Any]) -> str:
    says = "which one of them an image shows" if manifest.task == "multiclass" else "which of them an image shows"
    side, base = manifest.spec.size, _name(network_of(config))
    of = f" It started from {base}, of which was trained: {trained_of(config)}." if base else ""
    return (
        f"Trained with vitcls {manifest.vitcls}. It knows {len(manifest.labels)} classes and says {says}, from "
        f"{side} x {side} pixels.{of}"
    )


def _usage(shipped: Shipped, manifest: Manifest) -> str:
    if manifest.format in MODEL_FOLDERS:
        code = how_to_load(shipped.model, manifest.format == "adapter")
    else:
        code = _GRAPHS[_LIBRARIES[manifest.format]].format(file=manifest.file, images=_taken(manifest))
    ours = "python -m vitcls predict --ckpt_path THIS_FOLDER --data.predict photos"
    if manifest.format in EXECUTING:
        ours += " --model.trust_exported true"
    return f"```python\n{code}\n```\n\nor `{ours}`. The logits are divided by the temperature already."


def _taken(manifest: Manifest) -> str:
    """What a graph is to be given, for a comment."""
    if manifest.takes == "uint8":
        return "(B, 3, S, S) uint8 RGB, resized and cropped as `image` in manifest.json says"
    return "(B, 3, S, S) float32, resized, cropped and normalised as `image` in manifest.json says"


def _figures(run: Path | None, step: int) -> tuple[str, Mapping[str, Any]]:
    """What the report measured of these weights and not of others: of the test, or else of the validation."""
    content = runs.read_metrics(run / runs.REPORT) if run else {}
    judged = next((role for role in _ANSWERED if content.get(role, {}).get("step") == step), "")
    return judged, content.get(judged, {})


def _table(judged: str, figures: Mapping[str, Any]) -> str:
    if not figures:
        return "None were kept with the run; `python -m vitcls test --ckpt_path RUN` measures them."
    rows = []
    for name in (name for name in _SHOWN if name in figures):
        low, high = figures["intervals"].get(name, (None, None))
        rows.append(f"| {name} | {figures[name]:.4f} | {'' if low is None else f'{low:.4f} to {high:.4f}'} |")
    table = "\n".join(["| figure | value | 95 % interval |", "|---|---|---|", *rows])
    reads = f" The test was read {figures['reads']} times." if figures.get("reads", 1) > 1 else ""
    return f"Of {figures['images']} {_ANSWERED[judged]}; intervals by bootstrap over the images.{reads}\n\n{table}"


def _data(config: Mapping[str, Any], run: Path | None, licence: str) -> str:
    dataset = _section(config, "data").get("dataset")
    named = f"`{dataset}`" if isinstance(dataset, str) and (is_on_hub(dataset)) else "images of the one who trained it"
    splits = runs.read_splits(run) if run else {}
    counts = [
        f"{len(splits[role]['rows'])} {role}" for role in ("train", "validation") if "rows" in splits.get(role, {})
    ]
    rows = f" Images: {', '.join(counts)}." if counts else ""
    return f"Trained on {named}.{rows} Licence of the data: {licence or 'not known'}."


def _training(config: Mapping[str, Any], run: Path | None) -> str:
    model, data = _section(config, "model"), _section(config, "data")
    said = {
        "epochs at most": _section(config, "trainer").get("max_epochs"),
        "peak learning rate": model.get("lr"),
        "batch size": data.get("batch_size"),
        "augmentation": data.get("augment"),
        "precision": _section(config, "trainer").get("precision"),
        "seed": config.get("seed_everything"),
    }
    lines = [f"- {name}: {value}" for name, value in said.items() if value is not None]
    sessions = [each for each in (runs.read_sessions(run) if run else []) if "seconds" in each]
    if sessions:
        machine = sessions[-1]["machine"]
        on = machine["gpu"] or f"{machine['processor']}, {machine['cores']} cores"
        lines.append(f"- time: {sum(each['seconds'] for each in sessions):.0f} s on {on}")
    return "\n".join([*lines, "- energy: not measured"])


def _gate(manifest: Manifest) -> str:
    gate = manifest.gate
    name = "accuracy" if "accuracy_trained" in gate else "map"
    versions = ", ".join(f"{library} {number}" for library, number in manifest.versions.items())
    return (
        f"Beside the trained network, on {gate['images']} validation images: a logit differs by up to "
        f"{gate['largest_difference']:.2g}, {gate['agreement']:.2%} get the same class, {name} "
        f"{gate[f'{name}_exported']:.4f} ({gate[f'{name}_trained']:.4f} before); {gate['megabytes']} MB. Made with "
        f"{versions}. `manifest.json` has all of it, and the SHA-256 of each file."
    )


def _limits(manifest: Manifest) -> str:
    if manifest.task == "multiclass":
        always = "It names one of its classes for any image, also for one that shows none of them"
        return f"{always}: a low score is the only hint (`--abstain`). It was not tested on images of another kind."
    return "It knows its classes alone. It was not tested on images of another kind than those that it was trained on."


def _classes(manifest: Manifest) -> str:
    return "\n".join(f"- {json.dumps(label, ensure_ascii=False)}" for label in manifest.labels)


def _name(place: str) -> str:
    """A name that others understand: of a local folder the last part alone."""
    return place if is_on_hub(place) else Path(place).name


def _section(config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = config.get(name)
    return found if isinstance(found, dict) else {}


_PREDICTOR = """from vitcls.inference import Predictor

predict = Predictor("THIS_FOLDER")
print(predict("photo.jpg"))"""

_TORCH = """import torch

# Loading executes what the file says: only from someone you trust.
classify = torch.export.load("THIS_FOLDER/{file}").module()
# {images}
logits = classify(pixel_values)"""

_OPENVINO = """import openvino

classify = openvino.Core().compile_model("THIS_FOLDER/{file}", "CPU")
# {images}
logits = classify([pixel_values])["logits"]"""

_GRAPHS = {"onnx": _PREDICTOR, "pytorch": _TORCH, "openvino": _OPENVINO}
