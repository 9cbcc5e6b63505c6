"""What is exported: the classifier of a checkpoint, with its temperature in its weights, and images to prove it on."""

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from lightning.pytorch import Trainer
from torch import Tensor, nn

from vitcls.checkpoints import Checkpoint, arguments_of, open_checkpoint
from vitcls.data.datamodule import ImageDataModule
from vitcls.data.splits import Split
from vitcls.errors import UserError
from vitcls.models.classifier import ViTClassifier
from vitcls.models.network import heads_of
from vitcls.records import check_same_data
from vitcls.trainer_options import QUIET


@dataclass(frozen=True)
class Shipped:
    """A classifier on its way out.

    Attributes:
        checkpoint: where it is from.
        content: of the checkpoint.
        trained: as it was trained, on the CPU in float32, in evaluation mode.
        model: the same, whose logits are divided by its temperature already.
    """

    checkpoint: Checkpoint
    content: dict[str, Any]
    trained: ViTClassifier
    model: ViTClassifier

    @torch.inference_mode()
    def logits(self, pixel_values: Tensor) -> Tensor:
        """What the trained network says, by which an export is judged: (B, 3, S, S) float32 -> (B, K) float32."""
        return self.trained(pixel_values).float() / self.trained.temperature


def open_shipped(path: str) -> Shipped:
    """The best classifier of a run, or that of a .ckpt.

    Raises:
        UserError: there is none.
    """
    checkpoint, content = open_checkpoint(path, "export")
    trained = ViTClassifier.load_from_checkpoint(checkpoint.file, map_location="cpu", weights_only=True).eval()
    model = deepcopy(trained)
    divide_logits(model.network, trained.temperature)
    return Shipped(checkpoint, content, trained, model)


@torch.no_grad()
def divide_logits(network: Any, temperature: float) -> None:
    """Divide all logits by a number, in the last layer of each head: who takes their softmax needs not know it."""
    if temperature == 1:
        return
    for head in heads_of(network).values():
        # Below an adapter the head is there twice, as it was and as it was trained; DeiT with a teacher has two.
        for copy in (getattr(head, "modules_to_save", None) or {"": head}).values():
            last = [module for module in copy.modules() if isinstance(module, nn.Linear)][-1]
            for parameter in last.parameters():
                parameter.div_(temperature)


class Images:
    """The images of a run, or of a folder that is given, as its network takes them.

    Args:
        shipped: whose run says the data.
        validation_dir: class folders to prove it on, in the place of the run's validation images.
        with_training: whether images that were trained on are wanted as well.

    Raises:
        UserError: they cannot be had, or are not those of the run any more.
    """

    def __init__(self, shipped: Shipped, validation_dir: str | None, with_training: bool = False) -> None:
        said = {**arguments_of(shipped.content.get("datamodule_hyper_parameters", {})), "tta": "none", "cache": "none"}
        if validation_dir is not None:
            said = {**said, "validation_dir": validation_dir, "validation_files": None, "validation_split": None}
        if said.get("streaming"):
            raise UserError(
                "The run was trained on a stream, whose images have no places to come back to; give class folders of "
                "images to prove the export on, with --validation_dir and --to a format in float32."
            )
        self._data = ImageDataModule(**said)
        self._attach(shipped.trained, "fit" if with_training else "validate")
        if shipped.checkpoint.run is not None and validation_dir is None:
            check_same_data(shipped.checkpoint.run, self._data.splits)

    def _attach(self, model: ViTClassifier, stage: str) -> None:
        """Open the data; it asks a Trainer for what it needs of the model."""
        trainer = Trainer(accelerator="cpu", **QUIET)
        self._data.trainer = model.trainer = trainer
        trainer.strategy.connect(model)
        trainer.datamodule = self._data  # type: ignore[attr-defined]
        trainer.state.fn = stage  # type: ignore[assignment]
        self._data.setup(stage)

    @property
    def licence(self) -> str:
        """Of the data, as its own metadata says it; empty where it says none."""
        table: Any = cast(Split, self._data.splits["validation"]).table
        return table.info.license or ""

    def validation(self, most: int) -> tuple[Iterator[tuple[Tensor, Tensor]], int]:
        """Batches of images that were not trained on, and how many they are.

        Args:
            most: images; of more, as many are chosen, evenly.

        Returns:
            (B, 3, S, S) float32, normalised, and labels (B,) int64, or (B, K) of multilabel.
        """
        batches, count = self._data.evaluated("validation", most)
        return ((batch["pixel_values"], batch["labels"]) for batch in batches if len(batch["ids"])), count

    def training(self, most: int) -> list[Tensor]:
        """Batches (B, 3, S, S) float32, normalised, of images that were trained on, at least two.

        Args:
            most: images; of more, as many are chosen, evenly.
        """
        batches, _ = self._data.evaluated("train", most)
        pixels = torch.cat([batch["pixel_values"] for batch in batches if len(batch["ids"])])
        return list(pixels.split(min(32, -(-len(pixels) // 2))))


def size_of(folder: Path) -> int:
    """Bytes of all files of a folder."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
