"""Whether what is to train gets gradients, and nothing else does: looked at once, in the first optimiser step."""

import logging
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from torch.optim import Optimizer

from vitcls.errors import UserError, listing
from vitcls.models.kept import trains_part
from vitcls.models.network import parameters_of_head

log = logging.getLogger(__name__)


class GradientCheck(Callback):
    """Ends the training in its first step where the gradients are not those of what was chosen to train.

    An adapter on a layer that the network does not go through, or cut off by gradient checkpointing, would silently
    stay as it was. Of the weights below the head that train because all do, some may be idle by the network's own
    nature (the mask token of pretraining): they are named, and it is an error only if all are.
    """

    def __init__(self) -> None:
        self._is_done = False

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Look at the gradients, before any is dropped.

        Raises:
            UserError: names the weights.
        """
        if self._is_done or isinstance(trainer.strategy, (FSDPStrategy, ModelParallelStrategy, DeepSpeedStrategy)):
            return  # the others deal the weights out, under names of their own
        if trainer.current_epoch < pl_module.hparams["freeze_epochs"]:
            return  # the head may train on features, which go through nothing else
        self._is_done = True
        check_gradients(pl_module.network, all_train=not trains_part(pl_module.hparams))


def check_gradients(network: Any, all_train: bool) -> None:
    """Refuse gradients that reach frozen weights, or miss those that train.

    Args:
        network: after backward.
        all_train: weights train because all do, not because they were chosen.

    Raises:
        UserError: names the weights.
    """
    named = dict(network.named_parameters())
    frozen = [name for name, p in named.items() if p.grad is not None and not p.requires_grad]
    if frozen:
        raise UserError(f"{len(frozen)} frozen weights got gradients: {listing(frozen, 4)}; nothing may train them.")
    missed = [name for name, p in named.items() if p.grad is None and p.requires_grad]
    head = set(parameters_of_head(network))
    body = [name for name, p in named.items() if p.requires_grad and name not in head]
    if all_train and not head & set(missed) and missed != body:
        if missed:
            log.info("%d weights have no part in the classification and stay: %s", len(missed), listing(missed, 4))
    elif missed:
        raise UserError(
            f"{len(missed)} of {len(head) + len(body)} weights that are to train got no gradient: "
            f"{listing(missed, 4)}. The network does not go through them; choose others (--model.adapter.targets, "
            "--model.train), or leave gradient checkpointing out."
        )
