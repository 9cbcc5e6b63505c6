"""Training on smaller images first: an early epoch need not see every detail."""

import logging
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from vitcls.errors import UserError
from vitcls.models.input_size import check_multiple, check_takes, patch_side

log = logging.getLogger(__name__)


class ProgressiveSize(Callback):
    """Makes training images smaller in early epochs.

    Progressive learning (Tan and Le 2021, arXiv:2104.00298, section 4), without a regularisation that grows along.

    The network's time falls with about the square of the side. The images are decoded, cropped, augmented and mixed
    as ever and made smaller on the device, so where training waits for images (`train/data_wait`) nothing is gained.
    Position embeddings are the model's own, interpolated in the forward; a teacher sees the images in full.
    Validation, test, checkpoints and `model/` are of the model's size, which the last epochs should have as well:
    small images show objects in another size than evaluation does (FixRes, Touvron et al. 2019, arXiv:1906.06423).

    Args:
        sizes: from which epoch on, counted from 0, which side of the training images, pixels, such as
            `{0: 128, 4: 160, 8: 224}`; before the first one the model's.
    """

    def __init__(self, sizes: dict[int, int]) -> None:
        super().__init__()
        self.sizes = dict(sorted(sizes.items()))

    def setup(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        """Look whether the network takes such images.

        Raises:
            UserError: it does not, or an epoch or a size cannot be.
        """
        if stage != "fit":
            return
        pl_module.configure_model()
        whole = pl_module.image_spec.size
        self._check(pl_module.network, whole)
        if trainer.datamodule.hparams.get("feature_views"):  # type: ignore[attr-defined]
            log.warning(
                "ProgressiveSize: --data.feature_views computes features of images of %d pixels; epochs that take "
                "these gain nothing by smaller ones",
                whole,
            )
        if trainer.max_epochs is not None and trainer.max_epochs > 0:
            last = self._size_in(trainer.max_epochs - 1) or whole
            if last != whole:
                log.warning(
                    "ProgressiveSize: the last epoch trains on images of %d pixels, and the model is kept for %d; let "
                    "the training end at %d (sizes)",
                    last,
                    whole,
                    whole,
                )

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Set the size of this epoch, also where a resume begins in its middle."""
        size = self._size_in(trainer.current_epoch)
        if size != pl_module.train_size:
            log.info("epoch %d: training images of %d pixels", trainer.current_epoch, size or pl_module.image_spec.size)
        pl_module.train_size = size

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the model as it was."""
        pl_module.train_size = None  # type: ignore[assignment]

    def _size_in(self, epoch: int) -> int | None:
        """The side of that epoch's images, pixels; None: the model's."""
        return next((size for first, size in reversed(self.sizes.items()) if first <= epoch), None)

    def _check(self, network: Any, whole: int) -> None:
        if not self.sizes or min(self.sizes) < 0:
            raise UserError(
                f"ProgressiveSize has the sizes {self.sizes}; say from which epoch (from 0) which side in pixels, "
                "such as sizes: {0: 128, 4: 160, 8: 224}."
            )
        for size in self.sizes.values():
            if not 1 <= size <= whole:
                raise UserError(
                    f"ProgressiveSize has the size {size}; it must be at least 1 and at most the model's {whole} "
                    "pixels (--model.image_size makes that larger)."
                )
            check_multiple("A size of ProgressiveSize", size, patch_side(network))
            check_takes(network, size, "leave ProgressiveSize out; ViT, DeiT, BEiT, DINOv2, Swin, ConvNeXt, ResNet do")
