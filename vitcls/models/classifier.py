"""The LightningModule: a transformers image classifier, how it is trained, measured and kept."""

import logging
from contextlib import nullcontext
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any, Literal, cast

import torch
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn

import vitcls
from vitcls.checkpoints import RECORD
from vitcls.data.preprocess import ImageSpec, spec_of_size
from vitcls.errors import UserError, listing
from vitcls.manifest import read_manifest
from vitcls.metrics import StageMetrics
from vitcls.models import adaptive_rank
from vitcls.models.adapters import LoRA
from vitcls.models.arguments import check_arguments, check_threshold_names
from vitcls.models.building import build_network
from vitcls.models.distillation import Distill, Distilling, check_distill, distilling
from vitcls.models.features import embeddings_of_head, features_of, head_of, inputs_of_head
from vitcls.models.input_size import at_size, size_words
from vitcls.models.kept import check_frozen_part, check_trained_part, frozen_digest, trained_part, trains_part
from vitcls.models.losses import Loss, check_loss, loss_of_training
from vitcls.models.memory import check_memory, check_precision, compile_network, lower_base, recompute_activations
from vitcls.models.network import (
    input_size,
    labels_of_config,
    load_config,
    spec_at,
)
from vitcls.models.optimised import OptimisedModule
from vitcls.models.tasks import loss_of, mean_logits, measured, predictions_of, thresholds_of
from vitcls.optim import (
    OptimizerFactory,
    Schedule,
    check_same_groups,
    check_same_optimizer,
    name_of,
    parameter_groups,
)
from vitcls.together import failing_together
from vitcls.types import Asked, Batch, Predictions, Task

log = logging.getLogger(__name__)

STAGES = ("train", "val", "test")


class ViTClassifier(OptimisedModule):
    """An image classifier: ViTForImageClassification, or any other of transformers' classifiers.

    The network is built in `configure_model`, when the data's classes are known. What was learned
    from the data (`labels`, `image`) is written into the hyper-parameters, so that a checkpoint
    stands on its own.

    Args:
        checkpoint: pretrained network, Hub id or folder; ViT, DeiT, BEiT, Swin, DINOv2, ResNet,
            ConvNeXt and others that `AutoModelForImageClassification` loads. Or an adapter of peft, also
            one of transformers 4: it is merged into the base that it names.
        revision: of the Hub repository.
        architecture: instead of `checkpoint`, a network from scratch: `model_type` and fields of
            that type's transformers configuration, such as `{model_type: vit, hidden_size: 192}`.
        exported: instead of `checkpoint`, where nothing is trained, a folder of `python -m vitcls export`.
        trust_exported: whether `exported` may be of a format whose loader executes what its file says (torch).
        layers: of the checkpoint's blocks, how many are kept, the first ones; a small student of a distillation that
            does not start from nothing (Sajjad et al. 2020, arXiv:2004.03844, section 3.1). Not given: all.
        adapter: LoRA or another method; not given: no adapter.
        train: without an adapter, what is trained: `all` weights, the `head` only, or the head and every `bias`
            (BitFit, Ben Zaken et al. 2021, arXiv:2106.10199).
        last_blocks: with `train: all` and no adapter, how many of the last blocks train, with what follows them and
            the head; the others stay as they are. Not given: all.
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
        optimizer: another optimiser than AdamW, by class path, such as `torch.optim.SGD` or
            `torch.optim.Adafactor`; rate and decay stay `lr` and `weight_decay`.
        max_bad_steps: optimiser steps of a fit that may be left out because their loss or gradient is NaN or infinite;
            the next one ends the training.
        loss: what training minimises, where it is not the plain loss of the task.
        distill: a larger classifier to learn from, besides the labels; none where it is not given.
        task: `multiclass`: an image has one class (softmax, cross entropy, accuracy); `multilabel`: any
            number of them, or none (sigmoid, binary cross entropy, mean average precision).
        thresholds: multilabel: of the probability from which predict says that a class is there, by the
            class's name. Not given: what the checkpoint's validation chose, else 0.5.
        temperature: multiclass: what the logits are divided by before they become the probabilities of predict. Not
            given: what the checkpoint's validation chose (`calibration.BestTemperature`), else 1.
        labels: names of the classes in output order. Not given: the training data's.
        image: preprocessing, with the fields of `ImageSpec`. Not given: the checkpoint's.
        image_size: side of the input in pixels, where the checkpoint is to take larger or smaller images than
            it was trained on; its position embeddings are interpolated. Costs time with its square.
        gradient_checkpointing: keeps only what goes into each block and computes the rest again for the gradients:
            much less memory, about a quarter more time.
        base_precision: of weights that are frozen as a whole below lora, rslora, dora or a trained head: `bfloat16`
            halves their memory while they are worked with. Files hold float32, as without.
        compile: translates the network with torch.compile before the first step; true, or the name of a backend.
            Needs a C++ compiler. Takes a minute or more, which pays on a GPU and in long trainings.
    """

    def __init__(
        self,
        checkpoint: str | None = None,
        revision: str | None = None,
        architecture: dict[str, Any] | None = None,
        exported: str | None = None,
        trust_exported: bool = False,
        layers: int | None = None,
        adapter: LoRA | None = None,
        train: Literal["all", "head", "bias"] = "all",
        last_blocks: int | None = None,
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
        distill: Distill | None = None,
        task: Task = "multiclass",
        thresholds: dict[str, float] | None = None,
        temperature: float | None = None,
        labels: list[str] | None = None,
        image: dict[str, Any] | None = None,
        image_size: int | None = None,
        gradient_checkpointing: bool = False,
        base_precision: Literal["float32", "bfloat16"] = "float32",
        compile: bool | str = False,  # noqa: A002 - torch's own word for it
    ) -> None:
        super().__init__()
        checkpoint = None if checkpoint is None else str(checkpoint)  # checkpoints hold plain values only
        self.save_hyperparameters(ignore=["optimizer"])
        check_arguments(self.hparams)
        for name, given in (("adapter", adapter), ("loss", loss), ("distill", distill)):
            if is_dataclass(given):  # checkpoints are read with weights_only=True: plain values only
                self.hparams[name] = asdict(given)
        self._loss = Loss(**loss) if isinstance(loss, dict) else loss or Loss()
        check_loss(self._loss, task)
        self._distill = Distill(**distill) if isinstance(distill, dict) else distill
        if self._distill is not None:
            check_distill(self._distill)
        self._distilling: Distilling | None = None
        self.train_size: int | None = None  # side of the training images where a callback makes them smaller
        self._lora = LoRA(**adapter) if isinstance(adapter, dict) else adapter
        check_memory(gradient_checkpointing, base_precision, train, self._lora)
        self._optimizer_factory = optimizer
        self._keeps_trained_only = checkpoint is not None and trains_part(self.hparams)
        self._frozen_digest = ""
        self.figures_of_labels: dict[str, dict[str, dict[str, float]]] = {}  # stage -> figure -> label
        self._found_temperature = 1.0  # by the last validation
        self._image_spec: ImageSpec | None = None
        self.network: Any = None
        self.asked = Asked()  # of predict_step
        self._why_new_head = ""  # that nothing has trained yet

    # -- what the data asks for -------------------------------------------------------------

    @property
    def labels(self) -> list[str] | None:
        """Class names in output order, or None until the training data says them.

        A checkpoint that is validated or predicted with, without training, brings its own.
        """
        if self.hparams["labels"]:
            return list(self.hparams["labels"])
        if self.hparams["exported"] is not None:
            return read_manifest(Path(self.hparams["exported"]).expanduser()).labels
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

    @property
    def temperature(self) -> float:
        """What logits are divided by before they become probabilities; does not change which class is the best."""
        given = self.hparams["temperature"]
        return self._found_temperature if given is None else given

    @property
    def thresholds(self) -> dict[str, float]:
        """Multilabel: from which probability a class is there, by its name; none where none is given or was chosen."""
        return self.figures_of_labels.get("val", {}).get("threshold", {}) | (self.hparams["thresholds"] or {})

    @property
    def head_epochs(self) -> float:
        """How many first epochs of a training train the head alone; infinity where all do."""
        return float("inf") if self.hparams["train"] == "head" else self.hparams["freeze_epochs"]

    def _find_image_spec(self) -> ImageSpec:
        if self.hparams["image"] is not None:
            return ImageSpec.of_record(self.hparams["image"]).sized(self.hparams["image_size"])
        if self.hparams["exported"] is not None:
            return ImageSpec.of_record(read_manifest(Path(self.hparams["exported"]).expanduser()).image)
        checkpoint, revision = self.hparams["checkpoint"], self.hparams["revision"]
        if checkpoint is None:
            return spec_of_size(input_size(self.hparams["architecture"]))
        return spec_at(checkpoint, revision).sized(self.hparams["image_size"])

    # -- building ---------------------------------------------------------------------------

    def configure_model(self) -> None:
        """Build the network for the labels of the checkpoint or the data; once."""
        if self.network is not None:
            return
        labels = self._settle_labels()
        together = nullcontext() if self._trainer is None else failing_together()
        with together, torch.device("cpu"):  # the new head's random weights are the same on every device
            size = self.image_spec.size
            trains = self._is_fitting()
            self.network, self._why_new_head = build_network(self.hparams, self._lora, labels, size, trains)
        if self._keeps_trained_only:
            self._frozen_digest = frozen_digest(self.network)
        self._economise()
        if self._is_fitting():
            train = cast(Any, self.trainer).datamodule.splits["train"]
            self._training_loss = loss_of_training(
                self._loss, self.task, self.hparams["label_smoothing"], train, len(labels)
            )
            if self._distill is not None:
                self._distilling = distilling(self._distill, self, labels)
        self._metrics = nn.ModuleDict({f"{stage}_": StageMetrics(self.task, len(labels), stage) for stage in STAGES})

    def _economise(self) -> None:
        """As the memory options say; a network that is loaded without a Trainer, for its files, stays in float32."""
        if self.hparams["base_precision"] == "bfloat16" and self._trainer is not None:
            check_precision(str(self._trainer.precision))
            lower_base(self.network)
        if self._is_fitting():
            if self.hparams["gradient_checkpointing"]:
                recompute_activations(self.network)
            if self.hparams["compile"]:
                compile_network(self.network, self.hparams["compile"])

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
                "--ckpt_path, or a fine-tuned --model.checkpoint that has class names, or whose classes "
                "--model.labels names."
            )
        check_threshold_names(self.hparams["thresholds"], labels)
        self.hparams["labels"] = list(labels)
        self._image_spec = getattr(datamodule, "image_spec", None) or self.image_spec
        self.hparams["image"] = self._image_spec.record()
        return list(labels)

    # -- forward and steps ------------------------------------------------------------------

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Normalised images (B, 3, S, S) float -> logits (B, K) float."""
        words = size_words(self.network, pixel_values.shape[-1]) if self.train_size is not None else {}
        return self.network(pixel_values=pixel_values, **words).logits

    def logits(self, pixel_values: Tensor) -> Tensor:
        """(B, 3, S, S), or features (B, F) -> (B, K) float32; of V views, those of their mean probabilities."""
        features = pixel_values.ndim < 4
        forward = head_of(self.network) if features else self
        if pixel_values.ndim in (2, 4):
            return forward(pixel_values).float()
        return mean_logits(self.task, [forward(view).float() for view in pixel_values.unbind(1)])

    def features(self, pixel_values: Tensor) -> Tensor:
        """What the head is given, with nothing drawn at random, in the trainer's precision.

        Args:
            pixel_values: (B, 3, S, S) or (B, V, 3, S, S) float32, normalised.

        Returns:
            (B, F) or (B, V, F) float.

        Raises:
            UserError: the head is not the last thing in the network, there are two, or there is a teacher.
        """
        if self._distilling is not None:
            raise UserError(
                "A teacher (--model.distill) looks at the images of each epoch, and --data.feature_views computes "
                "features once; leave one of the two out."
            )
        images = pixel_values.flatten(0, -4)
        with torch.no_grad(), self.trainer.precision_plugin.forward_context():
            return features_of(self.network, images).unflatten(0, pixel_values.shape[:-3])

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The loss of a batch, weighed for its accumulation window."""
        loss, _ = self._measure("train", batch)
        self.log("train/loss_step", loss, prog_bar=True)
        return self._window.weigh(loss + adaptive_rank.penalty(self.network), len(batch["labels"]))

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Measure a batch."""
        self._measure("val", batch)

    def test_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Measure a batch; its logits (B, K) float32."""
        return self._measure("test", batch)[1]

    def predict_step(self, batch: Batch, batch_idx: int) -> Predictions:
        """The best classes of each image, and what else is asked for."""
        labels = self.hparams["labels"]
        with embeddings_of_head(self.network, self.asked.embeddings) as embeddings:
            logits = self.logits(batch["pixel_values"]) if len(batch["ids"]) else torch.empty(0, len(labels))
        thresholds = thresholds_of(labels, self.thresholds)
        return predictions_of(self.task, logits / self.temperature, thresholds, batch, self.asked, embeddings())

    def _measure(self, stage: Literal["train", "val", "test"], batch: Batch) -> tuple[Tensor, Tensor]:
        """The loss (mean over B) of a batch, taken into the figures of its stage, and its logits (B, K)."""
        labels = batch["labels"]
        metrics = cast(StageMetrics, self._metrics[f"{stage}_"])  # `train` alone is a module's own method
        loss, logits = torch.zeros(()), torch.zeros(0, len(self.hparams["labels"]))
        if len(labels):  # else every image of an evaluation batch was left out
            logits, loss = self._learn(batch) if stage == "train" else self._judge(batch)
            metrics.update(loss, *measured(self.task, logits, labels))
        return loss, logits

    def _judge(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The logits (B, K) of images, and their plain loss."""
        logits = self.logits(batch["pixel_values"])
        return logits, loss_of(self.task, logits, batch["labels"])

    def _learn(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The logits (B, K) of training images, and the loss to learn from."""
        pixels = batch["pixel_values"]
        if self._distilling is None:
            logits = self.logits(at_size(pixels, self.train_size))
            return logits, self._training_loss(logits, batch["labels"])
        with inputs_of_head(self.network) as features:
            logits = self.logits(at_size(pixels, self.train_size))
        loss, parts = self._distilling(self._training_loss(logits, batch["labels"]), logits, features[0], pixels)
        named = {f"train/{name}": part for name, part in parts.items()}
        self.log_dict(named, on_step=False, on_epoch=True, sync_dist=True, batch_size=len(pixels))
        return logits, loss

    def on_train_epoch_end(self) -> None:
        """Log the figures."""
        self._log_figures("train")

    def on_validation_start(self) -> None:
        """Refuse to measure with a head that nothing has trained."""
        self._check_head_is_trained()

    def on_test_start(self) -> None:
        """Refuse to measure with a head that nothing has trained."""
        self._check_head_is_trained()

    def on_predict_start(self) -> None:
        """Refuse to predict with a head that nothing has trained."""
        self._check_head_is_trained()

    def _check_head_is_trained(self) -> None:
        if self._why_new_head:
            raise UserError(
                f"--model.checkpoint {self.hparams['checkpoint']!r} has no trained head for the classes "
                f"{listing(self.hparams['labels'])}: {self._why_new_head}. Give its own classes with --model.labels "
                "(or leave the option out), or what was trained for yours with --ckpt_path, or train it with fit."
            )

    def on_validation_epoch_end(self) -> None:
        """Log the figures and keep those of each label."""
        self._log_figures("val")
        self._keep_figures_of_labels("val")

    def on_test_epoch_end(self) -> None:
        """Log the figures and keep those of each label."""
        self._log_figures("test")
        self._keep_figures_of_labels("test")

    def _log_figures(self, stage: str) -> None:
        # Once for an epoch: Lightning takes as long over logging four metrics as a small ViT over a forward pass.
        metrics = cast(StageMetrics, self._metrics[f"{stage}_"])
        if not metrics.loss.update_called:
            return  # an epoch that a resume finds finished
        self.log(f"{stage}/loss", metrics.loss)
        self.log_dict(metrics.figures, prog_bar=stage != "train")

    def _keep_figures_of_labels(self, stage: str) -> None:
        metrics = cast(StageMetrics, self._metrics[f"{stage}_"])
        figures, temperature = metrics.take_of_labels(self.hparams["labels"]), metrics.take_temperature()
        if self.trainer.sanity_checking:  # two batches choose no thresholds
            return
        self.figures_of_labels[stage] = figures
        if stage == "val":
            self._found_temperature = temperature

    def on_fit_start(self) -> None:
        """Say how much of the network trains; let the teacher come along."""
        self._why_new_head = ""  # from here on it is trained
        if self._distilling is not None:
            trained = next(p for p in self.network.parameters() if p.requires_grad)  # the others may be lowered
            self._distilling.teacher.to(self.device, trained.dtype)
        trainable, total = self.parameter_counts()
        log.info("trainable parameters: %s of %s (%.4f %%)", f"{trainable:,}", f"{total:,}", 100 * trainable / total)

    def _parameter_groups(self) -> list[dict[str, Any]]:
        groups = super()._parameter_groups()
        if self._distilling is not None:  # of the teacher, nothing; the projection of features
            groups += parameter_groups(self._distilling, self.hparams["lr"], self.hparams["weight_decay"])
        return groups

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
            "optimizer": next(map(name_of, self.trainer.optimizers), None),
            "metrics": {k: float(v) for k, v in self.trainer.callback_metrics.items()},
            "of_labels": self.figures_of_labels.get("val", {}),
            "temperature": self._found_temperature,
            "ranks": adaptive_rank.state_of(self.network),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse adapters or heads that were trained on other frozen weights; take the thresholds over.

        Raises:
            UserError: the checkpoint is not of vitcls, or of other frozen weights; of a resume, the groups of weights
                or the optimiser are others.
        """
        check_frozen_part(checkpoint, self._frozen_digest, self.hparams["checkpoint"])
        if self._is_fitting() and "optimizer_states" not in checkpoint:
            raise UserError(
                "The checkpoint holds weights alone, so its training cannot be resumed (a soup has none); start a new "
                "one from the folder model/ beside it, with --model.checkpoint."
            )
        if self._is_fitting() and checkpoint.get("optimizer_states"):
            check_same_groups(checkpoint["optimizer_states"][0]["param_groups"], self._parameter_groups())
            check_same_optimizer(checkpoint[RECORD].get("optimizer"), self._make_optimizer())
        adaptive_rank.restore(self.network, checkpoint[RECORD].get("ranks", {}))
        self.figures_of_labels["val"] = checkpoint[RECORD].get("of_labels", {})
        self._found_temperature = checkpoint[RECORD].get("temperature", 1.0)

    def load_state_dict(self, state_dict: Any, strict: bool = True, assign: bool = False) -> Any:
        """As torch's; where only the trained part is kept, exactly that part must be there.

        Raises:
            UserError: a trained weight is missing.
        """
        try:
            found = self._load(state_dict, strict, assign)
            self._why_new_head = self._why_new_head if found.missing_keys else ""
            return found
        except RuntimeError as error:  # sizes or names of the weights
            raise UserError(
                "The checkpoint's weights do not fit the network; its shape (--model.checkpoint, "
                "--model.architecture, --model.adapter, --model.image_size) must be the one that was trained: "
                f"{' '.join(str(error).split())[:300]}"
            ) from error

    def _load(self, state_dict: Any, strict: bool, assign: bool) -> Any:
        if self._distilling is None:  # only training projects features
            state_dict = {name: value for name, value in state_dict.items() if not name.startswith("_distilling.")}
        if not self._keeps_trained_only:
            return super().load_state_dict(state_dict, strict=strict, assign=assign)
        check_trained_part(self, state_dict)
        found = super().load_state_dict(state_dict, strict=False, assign=assign)
        return type(found)(missing_keys=[], unexpected_keys=found.unexpected_keys)

    def _is_fitting(self) -> bool:
        return self._trainer is not None and self._trainer.state.fn == TrainerFn.FITTING
