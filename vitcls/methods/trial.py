"""One way of training on one small network: does it train, resume, export and merge?"""

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningDataModule, Trainer
from peft import PeftModel
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import ViTImageProcessor

from vitcls.data.preprocess import spec_of_size
from vitcls.methods.networks import LABELS, SIZE, network_of
from vitcls.methods.ways import arguments_of
from vitcls.models.classifier import ViTClassifier
from vitcls.models.folder import TOLERANCE, load_model_folder, reload_difference, write_model_folder
from vitcls.models.peft_methods import can_merge
from vitcls.trainer_options import QUIET

IMAGES, BATCH = 8, 4
ORIGINAL_HEAD = ".original_module."  # peft keeps the random head aside


@dataclass(frozen=True)
class Found:
    """What a trial found; each is empty where it went well, and says what did not otherwise.

    Attributes:
        trains: only what the way says is changed, and a gradient reaches all of it.
        resumes: a training that goes on after its first epoch ends with the weights of one that was not interrupted,
            bit for bit.
        exports: the model folder, loaded by transformers and peft alone, gives the same logits and labels.
        merges: so does the network into which the adapter was merged. None: no adapter, or one that peft cannot
            merge, which the model card then does not promise.
    """

    trains: str
    resumes: str
    exports: str
    merges: str | None


class Noise(LightningDataModule):
    """Images of noise with made-up labels, the same each time."""

    labels = LABELS
    image_spec = spec_of_size(SIZE)

    def __init__(self) -> None:
        super().__init__()
        random = torch.Generator().manual_seed(0)
        pixels = torch.randn(IMAGES, 3, SIZE, SIZE, generator=random)
        self.splits = {
            "train": [{"pixel_values": image, "labels": n % len(LABELS), "ids": n} for n, image in enumerate(pixels)]
        }

    def train_dataloader(self) -> DataLoader:
        """In order."""
        return DataLoader(self.splits["train"], BATCH)  # type: ignore[arg-type]

    def val_dataloader(self) -> DataLoader:
        """The same; the trials do not validate, and Lightning would warn of none."""
        return self.train_dataloader()


class _Watch(Callback):
    """Names of the parameters that a gradient has reached; a checkpoint after each epoch.

    Args:
        folder: of the checkpoints, epoch0.ckpt and so on.
    """

    def __init__(self, folder: Path) -> None:
        self.reached: set[str] = set()
        self._folder = folder

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: Any, optimizer: Any) -> None:
        named = pl_module.network.named_parameters()
        self.reached |= {name for name, p in named if p.grad is not None and bool(p.grad.any())}

    def on_train_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        trainer.save_checkpoint(self._folder / f"epoch{trainer.current_epoch}.ckpt", weights_only=False)


def tried(way: str, family: str, folder: Path) -> Found:
    """Try a way of training on a family's network.

    Args:
        way: of `WAYS`.
        family: of `FAMILIES`.
        folder: empty; networks and checkpoints go there.

    Raises:
        UserError: the way is not for such a network; says what is.
    """
    network_of(family).save_pretrained(folder / "network")
    ViTImageProcessor(size={"height": SIZE, "width": SIZE}).save_pretrained(folder / "network")
    model = _fresh(way, family, folder)
    watch = _Watch(folder)
    _fit(model, [watch])
    trains = _trains(model, _fresh(way, family, folder), watch.reached)
    resumed = _fresh(way, family, folder)
    _fit(resumed, after=folder / "epoch0.ckpt")
    pixels = torch.randn(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
    write_model_folder(model, folder / "model")
    return Found(trains, _resumes(model, resumed), _exports(model, folder / "model", pixels), _merges(model, pixels))


def _fresh(way: str, family: str, folder: Path) -> ViTClassifier:
    torch.manual_seed(1)
    arguments = arguments_of(way, family)
    return ViTClassifier(str(folder / "network"), lr=1e-2, warmup_steps=0, schedule="constant", **arguments)


def _fit(model: ViTClassifier, callbacks: list[Callback] | None = None, after: Path | None = None) -> None:
    """Two epochs of two steps; or the second one alone, after a checkpoint."""
    trainer = Trainer(accelerator="cpu", max_epochs=2, limit_val_batches=0, callbacks=callbacks, **QUIET)
    trainer.fit(model, Noise(), ckpt_path=after, weights_only=True)


def _trains(model: ViTClassifier, fresh: ViTClassifier, reached: set[str]) -> str:
    """What changed is what may train, and a gradient has reached all of that."""
    fresh.hparams["labels"] = LABELS
    fresh.configure_model()
    before, after = dict(fresh.network.named_parameters()), dict(model.network.named_parameters())
    trainable = {name for name, parameter in after.items() if parameter.requires_grad}
    frozen = [n for n in after if n not in trainable and ORIGINAL_HEAD not in n]
    changed = [name for name in frozen if not torch.equal(before[name], after[name])]
    if changed:
        return f"changes {changed[0]}, which is frozen"
    unreached = sorted(trainable - reached)
    return f"no gradient reaches {unreached[0]}" if unreached else ""


def _resumes(model: ViTClassifier, resumed: ViTClassifier) -> str:
    ours, theirs = model.state_dict(), resumed.state_dict()
    differing = [name for name in ours if not torch.equal(ours[name], theirs[name])]
    return f"{differing[0]} differs after a resume" if differing else ""


def _exports(model: ViTClassifier, folder: Path, pixels: Tensor) -> str:
    difference = reload_difference(model, folder, pixels)
    if difference > TOLERANCE:
        return f"logits differ by {difference:.1e}"
    labels = list(load_model_folder(folder).config.id2label.values())
    return "" if labels == LABELS else f"labels are {labels}"


@torch.inference_mode()
def _merges(model: ViTClassifier, pixels: Tensor) -> str | None:
    if not isinstance(model.network, PeftModel) or not can_merge(model.network):
        return None
    logits = model.eval()(pixels)
    merged = copy.deepcopy(model.network).merge_and_unload()
    difference = (merged(pixel_values=pixels).logits - logits).abs().max().item()
    return "" if difference <= TOLERANCE else f"logits differ by {difference:.1e}"
