"""What to do where a device's memory is not enough."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from vitcls.models.kept import trains_part
from vitcls.models.memory import LOW_BASE_METHODS

MOST = 3  # settings that are told
_MIXED = "--trainer.precision bf16-mixed (16-mixed on GPUs before Ampere)"


class MemoryAdvice(Callback):
    """Adds to a torch.OutOfMemoryError, as a note, how much memory was taken and which settings take less."""

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Add the note."""
        if isinstance(exception, torch.OutOfMemoryError):
            exception.add_note(advice(exception, trainer, pl_module.hparams))


def advice(error: torch.OutOfMemoryError, trainer: Any, model: Mapping[str, Any]) -> str:
    """One sentence on the memory, one on what helps, of what is not done already.

    Args:
        error: as torch raised it.
        trainer: whose step failed.
        model: hyper-parameters of the ViTClassifier.
    """
    training = bool(trainer.training)
    data = trainer.datamodule.hparams
    batch = data["batch_size"] if training else data["eval_batch_size"] or data["batch_size"]
    step = f"a training step of {batch} images" if training else f"a batch of {batch} images that is evaluated"
    reason = " ".join(str(error).split(". GPU")[0].split()).rstrip(".")
    smaller = _for_training(batch, trainer, model) if training else _for_evaluation(batch, trainer)
    helps = list(smaller)[:MOST]
    what = f"What helps, the first first: {', '.join(helps)}." if helps else "A smaller --model.checkpoint would do."
    return f"The memory was not enough for {step}{_peak(trainer)} ({reason}). {what}"


def _for_training(batch: int, trainer: Any, model: Mapping[str, Any]) -> Iterator[str]:
    adapter = model["adapter"]
    if batch > 1:
        windows = 2 * trainer.accumulate_grad_batches
        yield f"--data.batch_size {batch // 2} --trainer.accumulate_grad_batches {windows} (the same images in a step)"
    if not model["gradient_checkpointing"] and model["train"] != "head":
        yield "--model.gradient_checkpointing true"
    if trainer.precision == "32-true":
        yield _MIXED
    if not trains_part(model) and model["checkpoint"] is not None:
        yield "--model.adapter.r 16"
    adapts = adapter is not None and adapter["method"] in LOW_BASE_METHODS and adapter["bias"] == "none"
    if (adapts or model["train"] == "head") and model["base_precision"] != "bfloat16":
        yield "--model.base_precision bfloat16"


def _for_evaluation(batch: int, trainer: Any) -> Iterator[str]:
    if batch > 1:
        yield f"--data.eval_batch_size {batch // 2}"
    if trainer.precision == "32-true":
        yield _MIXED


def _peak(trainer: Any) -> str:
    if trainer.strategy.root_device.type != "cuda":
        return ""
    taken = torch.cuda.max_memory_allocated(trainer.strategy.root_device)
    whole = torch.cuda.get_device_properties(trainer.strategy.root_device).total_memory
    return f", which took up to {taken / 2**30:.1f} of the GPU's {whole / 2**30:.1f} GiB"
