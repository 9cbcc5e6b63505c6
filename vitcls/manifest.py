"""`manifest.json` of an exported folder: what is in it, how it wants its images, how it was proven. Without torch."""

import hashlib
import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from types import UnionType
from typing import Any, get_origin

from vitcls.errors import UserError, listing
from vitcls.input_spec import InputSpec

MANIFEST = "manifest.json"
MODEL_FOLDERS = ("huggingface", "adapter")  # formats that are no graphs
INPUT, OUTPUT = "pixel_values", "logits"  # of a graph


@dataclass(frozen=True)
class Manifest:
    """What an exported folder says of itself.

    Attributes:
        format: its name, such as `onnx`.
        file: the network's own file in the folder, which its runtime loads.
        task: `multiclass`, an image has one class (softmax of the logits) or `multilabel`, any number (sigmoid).
        labels: K names of the classes, in output order.
        thresholds: multilabel: of each label, from which probability it is there.
        image: fields of an InputSpec.
        takes: `float32`: the network takes (B, 3, S, S) float32, normalised by mean and std of `image`; `uint8`: it
            takes (B, 3, S, S) uint8 RGB and normalises inside.
        alone: whether images are to be given one at a time: 8-bit ranges that are found for each batch would make the
            answer to an image depend on those beside it.
        temperature: by which the logits (B, K) are divided in the exported network already.
        made_of: file, epoch and step of the checkpoint.
        run: the run folder it was made of, relative to this folder, where this folder is inside it; else None.
        vitcls: version that exported.
        versions: of the libraries that it was made and proven with.
        gate: what the exported network was measured to do beside the trained one.
        files: SHA-256 of each other file of the folder, as hexadecimal digits.
    """

    format: str
    file: str
    task: str
    labels: list[str]
    thresholds: dict[str, float]
    image: dict[str, Any]
    takes: str
    temperature: float
    made_of: dict[str, Any]
    run: str | None
    vitcls: str
    versions: dict[str, str]
    alone: bool = False
    gate: dict[str, Any] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)

    @property
    def is_model_folder(self) -> bool:
        """Whether transformers loads it, rather than the runtime of a graph."""
        return self.format in MODEL_FOLDERS

    @property
    def spec(self) -> InputSpec:
        """How the network wants its images."""
        return InputSpec.of_record(self.image)


def is_exported(folder: Path) -> bool:
    """Whether a folder has a manifest."""
    return (folder / MANIFEST).is_file()


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a folder.

    Raises:
        UserError: there is none, or it is not one.
    """
    file = folder / MANIFEST
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        unknown = set(content) ^ {f.name for f in fields(Manifest)}
        if unknown:
            raise ValueError(f"its keys are not those of a manifest: {listing(sorted(unknown))}")
        _check_types(content)
        return Manifest(**content)
    except FileNotFoundError as error:
        raise UserError(
            f"{str(folder)!r} is no exported folder (it has no {MANIFEST}); `python -m vitcls export RUN --to onnx` "
            "makes one."
        ) from error
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{file} cannot be read ({error}); export again.") from error


def _check_types(content: dict[str, Any]) -> None:
    for each in fields(Manifest):
        kind: Any = each.type if isinstance(each.type, UnionType) else get_origin(each.type) or each.type
        value = content[each.name]
        if not isinstance(value, float | int if kind is float else kind):
            raise ValueError(f"its {each.name} is {value!r}")


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write it, as the last file of the folder; `files` is found out here."""
    content = {**asdict(manifest), "files": {name: _digest(folder / name) for name in files_of(folder)}}
    (folder / MANIFEST).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def files_of(folder: Path) -> list[str]:
    """The names of all files of an exported folder, such as `sub/file`, without the manifest's own."""
    names = (file.relative_to(folder).as_posix() for file in sorted(folder.rglob("*")) if file.is_file())
    return [name for name in names if name != MANIFEST]


def check_files(folder: Path, manifest: Manifest) -> None:
    """Refuse a folder whose files are not those that were proven.

    Raises:
        UserError: names the first that is missing or has changed.
    """
    if manifest.file not in manifest.files or Path(manifest.file).name != manifest.file:
        raise UserError(
            f"{folder / MANIFEST} names the network {manifest.file!r}, which is none of its files; export again."
        )
    for name, digest in manifest.files.items():
        file = folder / name
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise UserError(f"{folder / MANIFEST} names {name!r}, which is not in the folder; export again.")
        if not file.is_file():
            raise UserError(f"{file} is missing, which {MANIFEST} names; copy the whole folder, or export again.")
        if _digest(file) != digest:
            raise UserError(
                f"{file} is not what was exported: its SHA-256 differs from that in {MANIFEST}; copy it again, or "
                "export again."
            )


def _digest(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
