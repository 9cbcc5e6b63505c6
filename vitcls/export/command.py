"""`python -m vitcls export`: files that others run, made of a run and proven beside it."""

import logging
import os
import sys
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from jsonargparse import ArgumentParser, Namespace
from rich.console import Console
from rich.progress import track
from torch import Tensor

import vitcls
from vitcls.errors import UserError, check_range, listing, suggestion
from vitcls.export.card import write_card
from vitcls.export.formats import FORMATS, Job, check_installed
from vitcls.export.gate import Network, check_drop, check_exact, drop, measured
from vitcls.export.hub import check_push, push, tell
from vitcls.export.place import half_made, place_for
from vitcls.export.shipped import Images, Shipped, open_shipped, size_of
from vitcls.machine import machine
from vitcls.manifest import MODEL_FOLDERS, Manifest, write_manifest
from vitcls.models.exported import ExportedNetwork
from vitcls.models.folder import load_model_folder
from vitcls.models.input_size import size_words
from vitcls.wording import PARSER_OPTIONS, parsed

log = logging.getLogger(__name__)


def export_parser() -> ArgumentParser:
    """The options of `export`."""
    parser = ArgumentParser(
        prog="python -m vitcls export",
        description="Make files of a run that others run. The exported network is asked about the validation images of "
        "the run, by its own runtime, and kept only if it gives the answers of the trained one; manifest.json says "
        "what was measured.",
        **PARSER_OPTIONS,
    )
    parser.add_argument("run", type=str, help="run folder (its best.ckpt) or .ckpt file.")
    formats = "; ".join(f"{name}: {known.meaning}" for name, known in FORMATS.items())
    parser.add_argument("--to", type=str, default="onnx", help=f"format. {formats}.")
    parser.add_argument(
        "--output", type=str | None, default=None, help="folder to make (default: exported/FORMAT in the run)."
    )
    parser.add_argument(
        "--input",
        type=str,
        default="float32",
        help="what a graph takes: `float32`, normalised images, or `uint8`, which it normalises itself.",
    )
    parser.add_argument(
        "--validation_dir", type=str | None, default=None, help="class folders to prove it on (default: the run's)."
    )
    parser.add_argument("--images", type=int, default=1000, help="validation images at most.")
    parser.add_argument("--max_drop", type=float, default=1.0, help="int8: percentage points that may be lost.")
    parser.add_argument(
        "--calibration_images", type=int, default=256, help="int8: training images that the ranges are measured on."
    )
    parser.add_argument("--push_to_hub", type=str | None, default=None, help="send it to this repository of the Hub.")
    parser.add_argument("--private", type=bool, default=True, help="whether a repository made for it is private.")
    parser.add_argument("--dry_run", type=bool, default=False, help="with --push_to_hub: only say what would be sent.")
    return parser


def run_export(words: list[str]) -> int:
    """Export a run.

    Args:
        words: of the command line, the verb first.

    Returns:
        the exit status, 0.

    Raises:
        UserError: a mistake in the words, or an export that does not give the answers of the run.
    """
    parser = export_parser()
    with suppress(SystemExit):  # how --help ends
        _export(_checked(parsed(parser, words[1:], parser)))
    return 0


def _checked(options: Namespace) -> Namespace:
    if options.to not in FORMATS:
        raise UserError(
            f"--to {options.to!r} is no format{suggestion(options.to, FORMATS)}; there are {listing(FORMATS)}."
        )
    check_range("input", repr(options.input), options.input in ("float32", "uint8"), "float32 or uint8")
    if options.input != "float32" and options.to in MODEL_FOLDERS:
        raise UserError(f"--input belongs to graphs; --to {options.to} takes what transformers' processor gives.")
    if options.dry_run and options.push_to_hub is None:
        raise UserError("--dry_run says what --push_to_hub would send; give it a repository, or leave --dry_run out.")
    check_range("images", options.images, options.images >= 1, "at least 1")
    check_range("max_drop", options.max_drop, 0 <= options.max_drop <= 100, "in 0..100, percentage points")
    check_range("calibration_images", options.calibration_images, options.calibration_images >= 2, "at least 2")
    check_installed(options.to)
    return options


def _export(options: Namespace) -> None:
    known = FORMATS[options.to]
    shipped = open_shipped(options.run)
    place = place_for(options.output, shipped.checkpoint, options.to)
    if options.push_to_hub is not None:
        check_push(options.push_to_hub, options.dry_run, options.to, shipped)
    images = Images(shipped, options.validation_dir, with_training=not known.is_exact)
    with half_made(place) as folder:
        log.info("exporting to %s", options.to)
        job = Job(shipped, folder, options.input, lambda: images.training(options.calibration_images))
        file, notes = known.write(job)
        manifest = _manifest(options, shipped, place, file, notes)
        write_manifest(folder, manifest)  # by which the graph is loaded, as anyone would
        manifest = replace(manifest, gate={**_proven(options, shipped, folder, images), **notes})
        write_card(folder, shipped, manifest, images.licence)
        write_manifest(folder, manifest)
    _say(manifest.gate, place)
    if options.dry_run:
        tell(place, options.push_to_hub)
    elif options.push_to_hub is not None:
        push(place, options.push_to_hub, options.private)


def _proven(options: Namespace, shipped: Shipped, folder: Path, images: Images) -> dict[str, Any]:
    """What was measured of the network in the folder.

    Raises:
        UserError: it does not give the answers of the run.
    """
    known = FORMATS[options.to]
    batches = _shown(*images.validation(options.images))
    found = measured(shipped.logits, _network(shipped, folder, options.to), batches, shipped.model.task)
    if known.is_exact:
        check_exact(found)
    else:
        check_drop(found, options.max_drop)
    megabytes = round(size_of(folder) / 1e6, 2)
    return {**found, "megabytes": megabytes, "machine": machine("transformers", *known.needs)}


def _manifest(options: Namespace, shipped: Shipped, place: Path, file: str, notes: dict[str, Any]) -> Manifest:
    model, run = shipped.model, shipped.checkpoint.run
    inside = run is not None and place.is_relative_to(run.resolve())
    libraries = ("torch", "transformers", "peft", *FORMATS[options.to].needs)
    return Manifest(
        format=options.to,
        file=file,
        task=model.task,
        labels=list(model.hparams["labels"]),
        thresholds=model.thresholds,
        image=model.image_spec.record(),
        takes=options.input,
        temperature=model.temperature,
        made_of={
            "checkpoint": shipped.checkpoint.file.name,
            "epoch": shipped.content["epoch"],
            "step": shipped.content["global_step"],
        },
        run=os.path.relpath(run.resolve(), place) if run is not None and inside else None,
        vitcls=vitcls.__version__,
        versions={name: version(name) for name in libraries},
        alone=notes.get("quantised", {}).get("chosen") == "dynamic",
    )


def _network(shipped: Shipped, folder: Path, name: str) -> Network:
    """The exported network, loaded by what others load it with."""
    if name not in MODEL_FOLDERS:
        graph = ExportedNetwork(folder, trusts=True)  # it was made here
        return lambda pixel_values: graph(pixel_values).logits
    network = load_model_folder(folder)
    words = size_words(network, shipped.model.image_spec.size)

    @torch.inference_mode()
    def logits(pixel_values: Tensor) -> Tensor:
        return network(pixel_values=pixel_values, **words).logits

    return logits


def _shown(batches: Iterable[Any], count: int) -> Iterable[Any]:
    told, console = "proving it on validation images", Console(stderr=True)
    return track(batches, told, count, console=console, disable=not sys.stderr.isatty(), transient=True)


def _say(found: dict[str, Any], place: Path) -> None:
    name = "accuracy" if "accuracy_trained" in found else "map"
    log.info(
        "%d validation images: a logit differs by up to %.2g, %.2f %% get the same class; %s %.4f, of the run %.4f "
        "(%+.2f points)",
        found["images"],
        found["largest_difference"],
        100 * found["agreement"],
        name,
        found[f"{name}_exported"],
        found[f"{name}_trained"],
        -drop(found),
    )
    log.info(
        "%.1f images a second, of the run %.1f; %.2f MB",
        found["images_per_second_exported"],
        found["images_per_second_trained"],
        found["megabytes"],
    )
    log.info("exported folder: %s", place)
