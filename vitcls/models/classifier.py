"""The LightningModule: a transformers image classifier, how it is trained, measured and kept."""

import logging
from contextlib import nullcontext
from dataclasses import asdict, is_dataclass
from typing import Any, Literal, cast

import torch
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn

import vitcls
from vitcls.data.preprocess import ImageSpec, record_of_spec, spec_of_checkpoint, spec_of_record, spec_of_size
from vitcls.errors import UserError, check_range
from vitcls.metrics import StageMetrics
from vitcls.models.adapters import LoRA, add_lora
from vitcls.models.arguments import (
    check_freezing,
    check_network,
    check_numbers,
    check_rates,
    check_schedule,
    check_threshold_names,
    check_thresholds,
)
from vitcls.models.input_size import fit_to_size
from vitcls.models.kept import check_frozen_part, check_trained_part, frozen_digest, trained_part
from vitcls.models.losses import Loss, TrainingLoss, check_loss
from vitcls.models.network import (
    explained,
    from_architecture,
    from_checkpoint,
    head_names,
    hold_frozen_statistics,
    input_size,
    labels_of_config,
    load_config,
    train_head_only,
)
from vitcls.models.optimised import OptimisedModule
from vitcls.models.tasks import loss_of, mean_logits, measured, predictions_of, thresholds_of
from vitcls.optim import (
    OptimizerFactory,
    Schedule,
    check_same_groups,
)
from vitcls.runs import RECORD
from vitcls.together import failing_together
from vitcls.types import Batch, Predictions, Task

log = logging.getLogger(__name__)

STAGES = ("train", "val", "test")


class ViTClassifier(OptimisedModule):
    """An image classifier: ViTForImageClassification, or any other of transformers' classifiers.

    The network is built in `configure_model`, when the data's classes are known. What was learned
    from the data (`labels`, `image`) is written into the hyper-parameters, so that a checkpoint
    stands on its own.

    Args:
        checkpoint: pretrained network, Hub id or folder; ViT, DeiT, BEiT, Swin, DINOv2, ResNet,
            ConvNeXt and others that `AutoModelForImageClassification` loads.
        revision: of the Hub repository.
        architecture: instead of `checkpoint`, a network from scratch: `model_type` and fields of
            that type's transformers configuration, such as `{model_type: vit, hidden_size: 192}`.
        adapter: LoRA or another method; not given: no adapter.
        train: without an adapter, what is trained: `all` weights, the `head` only, or the head and every `bias`
            (BitFit, Ben Zaken et al. 2021, arXiv:2106.10199).
        freeze_epochs: with `train: all` or an adapter, the number of first epochs in which the head trains alone
            (linear probing, then fine-tuning: Kumar et al. 2022, arXiv:2202.10054). The steps still go through the
            whole network, so they take as long as the others; warm-up and schedule run through.
        lr: peak learning rate.
        head_lr: that of the head, where it is another.
        layer_decay: what the rate is multiplied by from one block to the one below it, in (0, 1]; fine-tuning
            BEiT takes 0.65 to 0.85 (Bao et al. 2021, arXiv:2106.08254). 1: the same rate in all layers.
        weight_decay: of weight matrices; biases, norms, tokens and position embeddings do not decay.
        warmup_steps: optimiser steps of linear warm-up.
        warmup_fraction: the same as a share of all optimiser steps, where `warmup_steps` is not given.
        schedule: of the learning rate after the warm-up: `cosine`, `linear` and `polynomial` fall to 0 from there,
            `warmup_stable_decay` only at the end, `constant` not at all.
        schedule_power: of `polynomial`, above 0; 1 is `linear`.
        decay_fraction: of `warmup_stable_decay`: in which share of all optimiser steps, the last, it falls.
        label_smoothing: share of the target spread over all classes in training (Szegedy et al. 2015,
            arXiv:1512.00567, section 7), in [0, 1); multilabel: over the yes and no of each class.
            Validation and test measure the plain loss.
        optimizer: another optimiser than AdamW, by class path; rate and decay stay `lr` and
            `weight_decay`.
        max_bad_steps: optimiser steps of a fit that may be left out because their loss or gradient is NaN or infinite;
            the next one ends the training.
        loss: what training minimises, where it is not the plain loss of the task.
        task: `multiclass`: an image has one class (softmax, cross entropy, accuracy); `multilabel`: any
            number of them, or none (sigmoid, binary cross entropy, mean average precision).
        thresholds: multilabel: of the probability from which predict says that a class is there, by the
            class's name. Not given: what the checkpoint's validation chose, else 0.5.
        labels: names of the classes in output order. Not given: the training data's.
        image: preprocessing, with the fields of `ImageSpec`. Not given: the checkpoint's.
        image_size: side of the input in pixels, where the checkpoint is to take larger or smaller images than
            it was trained on; its position embeddings are interpolated. Costs time with its square.
    """

    def __init__(
        self,
        checkpoint: str | None = None,
        revision: str | None = None,
        architecture: dict[str, Any] | None = None,
        adapter: LoRA | None = None,
        train: Literal["all", "head", "bias"] = "all",
        freeze_epochs: int = 0,
        lr: float = 1e-4,
        head_lr: float | None = None,
        layer_decay: float = 1.0,
        weight_decay: float = 0.01,
        warmup_steps: int | None = None,
        warmup_fraction: float = 0.1,
        schedule: Schedule = "cosine",
        schedule_power: float = 2.0,
        decay_fraction: float = 0.2,
        label_smoothing: float = 0.0,
        optimizer: OptimizerFactory | None = None,
        max_bad_steps: int = 0,
        loss: Loss | None = None,
        task: Task = "multiclass",
        thresholds: dict[str, float] | None = None,
        labels: list[str] | None = None,
        image: dict[str, Any] | None = None,
        image_size: int | None = None,
    ) -> None:
        super().__init__()
        check_network(checkpoint, architecture, adapter, train, image_size)
        check_numbers(lr, weight_decay, warmup_fraction, label_smoothing)
        check_rates(head_lr, layer_decay, adapter, train)
        check_freezing(freeze_epochs, train)
        check_range("model.max_bad_steps", max_bad_steps, max_bad_steps >= 0, "at least 0")
        check_schedule(schedule, schedule_power, decay_fraction, warmup_fraction if warmup_steps is None else 0.0)
        check_thresholds(thresholds, task)
        checkpoint = None if checkpoint is None else str(checkpoint)  # checkpoints hold plain values only
        self.save_hyperparameters(ignore=["optimizer"])
        for name, given in (("adapter", adapter), ("loss", loss)):
            if is_dataclass(given):  # checkpoints are read with weights_only=True: plain values only
                self.hparams[name] = asdict(given)
        self._loss = Loss(**loss) if isinstance(loss, dict) else loss or Loss()
        check_loss(self._loss, task)
        self._lora = LoRA(**adapter) if isinstance(adapter, dict) else adapter
        self._optimizer_factory = optimizer
        self._keeps_trained_only = checkpoint is not None and (adapter is not None or train != "all")
        self._frozen_digest = ""
        self.figures_of_labels: dict[str, dict[str, dict[str, float]]] = {}  # stage -> figure -> label
        self._image_spec: ImageSpec | None = None
        self.network: Any = None

    # -- what the data asks for -------------------------------------------------------------

    @property
    def labels(self) -> list[str] | None:
        """Class names in output order, or None until the training data says them.

        A checkpoint that is validated or predicted with, without training, brings its own.
        """
        if self.hparams["labels"]:
            return list(self.hparams["labels"])
        if self._is_fitting() or self.hparams["checkpoint"] is None:
            return None
        return labels_of_config(load_config(self.hparams["checkpoint"], self.hparams["revision"]))

    @property
    def image_spec(self) -> ImageSpec:
        """The preprocessing: recorded, or the checkpoint's, or that of the architecture's input size."""
        if self._image_spec is None:
            self._image_spec = self._find_image_spec()
        return self._image_spec

    @property
    def task(self) -> Task:
        """Whether an image has one class or any number of them."""
        return self.hparams["task"]

    def _find_image_spec(self) -> ImageSpec:
        if self.hparams["image"] is not None:
            return spec_of_record(self.hparams["image"]).sized(self.hparams["image_size"])
        checkpoint, revision = self.hparams["checkpoint"], self.hparams["revision"]
        if checkpoint is None:
            return spec_of_size(input_size(self.hparams["architecture"]))
        load_config(checkpoint, revision)
        with explained(checkpoint):
            return spec_of_checkpoint(checkpoint, revision).sized(self.hparams["image_size"])

    # -- building ---------------------------------------------------------------------------

    def configure_model(self) -> None:
        """Build the network for the labels of the checkpoint or the data; once."""
        if self.network is not None:
            return
        labels = self._settle_labels()
        together = nullcontext() if self._trainer is None else failing_together()
        with together, torch.device("cpu"):  # the new head's random weights are the same on every device
            self.network = self._build(labels)
        if self._keeps_trained_only:
            self._frozen_digest = frozen_digest(self.network)
        if self._is_fitting():
            self._training_loss = self._loss_of_training_data(len(labels))
        self._metrics = nn.ModuleDict({f"{stage}_": StageMetrics(self.task, len(labels), stage) for stage in STAGES})

    def _loss_of_training_data(self, classes: int) -> TrainingLoss:
        train = cast(Any, self.trainer).datamodule.splits["train"]
        if not self._loss.needs_counts():
            counts = torch.ones(classes)
        elif hasattr(train, "class_counts"):
            counts = torch.from_numpy(train.class_counts(classes))
        else:
            raise UserError(
                "--model.loss needs to know how many images each class has, which a stream does not tell; leave "
                "--data.streaming out, or take another loss."
            )
        return TrainingLoss(self._loss, self.task, self.hparams["label_smoothing"], counts, len(train))

    def parameter_counts(self) -> tuple[int, int]:
        """(trainable, all) parameters of the network."""
        sizes = [(p.numel(), p.requires_grad) for p in self.network.parameters()]
        return sum(n for n, trainable in sizes if trainable), sum(n for n, _ in sizes)

    def _settle_labels(self) -> list[str]:
        datamodule = None if self._trainer is None else getattr(self._trainer, "datamodule", None)
        labels = datamodule.labels if datamodule is not None and self._is_fitting() else self.labels
        if not labels:
            raise UserError(
                "The model has no classes yet: nothing has been trained. Give a run folder or .ckpt with "
                "--ckpt_path, or a fine-tuned --model.checkpoint that has class names."
            )
        check_threshold_names(self.hparams["thresholds"], labels)
        self.hparams["labels"] = list(labels)
        self._image_spec = getattr(datamodule, "image_spec", None) or self.image_spec
        self.hparams["image"] = record_of_spec(self._image_spec)
        return list(labels)

    def _build(self, labels: list[str]) -> Any:
        checkpoint = self.hparams["checkpoint"]
        if checkpoint is None:
            return from_architecture(self.hparams["architecture"], labels, self.task)
        network = from_checkpoint(checkpoint, self.hparams["revision"], labels, self.task)
        if self.hparams["image_size"] is not None:
            fit_to_size(network, self.hparams["image_size"])
        if self._lora is not None:
            network = add_lora(network, self._lora, head_names(network), self.hparams["revision"])
        elif self.hparams["train"] != "all":
            train_head_only(network, biases=self.hparams["train"] == "bias")
        if self._keeps_trained_only:
            hold_frozen_statistics(network)
        return network

    # -- forward and steps ------------------------------------------------------------------

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Normalised images (B, 3, S, S) float -> logits (B, K) float."""
        return self.network(pixel_values=pixel_values).logits

    def _logits(self, pixel_values: Tensor) -> Tensor:
        """(B, 3, S, S) -> (B, K) float32; of views (B, V, 3, S, S), those of their mean probabilities."""
        if pixel_values.ndim == 4:
            return self(pixel_values).float()
        return mean_logits(self.task, [self(view).float() for view in pixel_values.unbind(1)])

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The loss of a batch, weighed for its accumulation window."""
        loss = self._measure("train", batch)
        self.log("train/loss_step", loss, prog_bar=True)
        return self._window.weigh(loss, len(batch["labels"]))

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Measure a batch."""
        self._measure("val", batch)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Measure a batch."""
        self._measure("test", batch)

    def predict_step(self, batch: Batch, batch_idx: int) -> Predictions:
        """The best classes of each image, at most five."""
        labels = self.hparams["labels"]
        logits = self._logits(batch["pixel_values"]) if len(batch["ids"]) else torch.empty(0, len(labels))
        tuned = self.figures_of_labels.get("val", {}).get("threshold", {})
        thresholds = thresholds_of(labels, tuned | (self.hparams["thresholds"] or {}))
        return predictions_of(self.task, logits, thresholds, batch)

    def _measure(self, stage: Literal["train", "val", "test"], batch: Batch) -> Tensor:
        """The loss (mean over B) of a batch, logged with the metrics of its stage."""
        labels = batch["labels"]
        metrics = cast(StageMetrics, self._metrics[f"{stage}_"])  # `train` alone is a module's own method
        loss = torch.zeros(())
        if len(labels):  # else every image of an evaluation batch was left out
            logits = self._logits(batch["pixel_values"])
            loss = self._training_loss(logits, labels) if stage == "train" else loss_of(self.task, logits, labels)
            metrics.update(loss, *measured(self.task, logits, labels))
        self.log(f"{stage}/loss", metrics.loss, on_step=False, on_epoch=True)
        self.log_dict(metrics.figures, on_step=False, on_epoch=True, prog_bar=stage != "train")
        return loss

    def on_validation_epoch_end(self) -> None:
        """Keep the figures of each label."""
        self._keep_figures_of_labels("val")

    def on_test_epoch_end(self) -> None:
        """Keep the figures of each label."""
        self._keep_figures_of_labels("test")

    def _keep_figures_of_labels(self, stage: str) -> None:
        metrics = cast(StageMetrics, self._metrics[f"{stage}_"])
        figures = metrics.take_of_labels(self.hparams["labels"])
        if not self.trainer.sanity_checking:  # two batches choose no thresholds
            self.figures_of_labels[stage] = figures

    def on_fit_start(self) -> None:
        """Say how much of the network trains."""
        trainable, total = self.parameter_counts()
        log.info("trainable parameters: %s of %s (%.4f %%)", f"{trainable:,}", f"{total:,}", 100 * trainable / total)

    # -- keeping ----------------------------------------------------------------------------

    def kept_part(self, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        """What a checkpoint keeps of the weights: what was trained, where the rest can be had again."""
        return trained_part(self, state_dict) if self._keeps_trained_only else state_dict

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the weights that cannot be had again, and the figures of the moment."""
        checkpoint["state_dict"] = self.kept_part(checkpoint["state_dict"])
        checkpoint[RECORD] = {
            "version": vitcls.__version__,
            "frozen_digest": self._frozen_digest,
            "precision": str(self.trainer.precision),
            "metrics": {k: float(v) for k, v in self.trainer.callback_metrics.items()},
            "of_labels": self.figures_of_labels.get("val", {}),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse adapters or heads that were trained on other frozen weights; take the thresholds over.

        Raises:
            UserError: the checkpoint is not of vitcls, the frozen weights differ, or the groups of a resume do.
        """
        check_frozen_part(checkpoint, self._frozen_digest, self.hparams["checkpoint"])
        if self._is_fitting() and checkpoint.get("optimizer_states"):
            check_same_groups(checkpoint["optimizer_states"][0]["param_groups"], self._parameter_groups())
        self.figures_of_labels["val"] = checkpoint[RECORD].get("of_labels", {})

    def load_state_dict(self, state_dict: Any, strict: bool = True, assign: bool = False) -> Any:
        """As torch's; where only the trained part is kept, exactly that part must be there.

        Raises:
            UserError: a trained weight is missing.
        """
        try:
            return self._load(state_dict, strict, assign)
        except RuntimeError as error:  # sizes or names of the weights
            raise UserError(
                "The checkpoint's weights do not fit the network; its shape (--model.checkpoint, "
                "--model.architecture, --model.adapter, --model.image_size) must be the one that was trained: "
                f"{' '.join(str(error).split())[:300]}"
            ) from error

    def _load(self, state_dict: Any, strict: bool, assign: bool) -> Any:
        if not self._keeps_trained_only:
            return super().load_state_dict(state_dict, strict=strict, assign=assign)
        check_trained_part(self, state_dict)
        found = super().load_state_dict(state_dict, strict=False, assign=assign)
        return type(found)(missing_keys=[], unexpected_keys=found.unexpected_keys)

    def _is_fitting(self) -> bool:
        return self._trainer is not None and self._trainer.state.fn == TrainerFn.FITTING
