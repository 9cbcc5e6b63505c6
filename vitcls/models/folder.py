"""The `model/` folder of a run: what anyone can load with plain transformers and peft."""

from copy import copy, deepcopy
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel
from torch import Tensor
from transformers import AutoConfig, AutoModelForImageClassification

from vitcls.data.preprocess import processor_of_spec
from vitcls.models.adaptive_rank import note_ranks
from vitcls.models.classifier import ViTClassifier
from vitcls.models.network import quiet_transformers
from vitcls.models.peft_methods import can_merge, quiet_peft

# float32 on one machine: a reload that computes the same thing differs by 0; merged or fused
# kernels by 2e-6 at most.
TOLERANCE = 1e-5


def write_model_folder(model: ViTClassifier, folder: Path, merges: bool = False) -> None:
    """Write weights (or adapter and head), labels, image processor and a model card.

    Args:
        model: trained.
        folder: made if need be.
        merges: whether an adapter becomes part of whole weights, even where it could stay one.
    """
    network, adapted = model.network, not merges and stays_adapter(model.network)
    if not adapted:
        network = merged(network)
    if adapted:
        note_ranks(network)
    with quiet_transformers():
        network.save_pretrained(folder)
    if adapted:
        _config_of_base(network).save_pretrained(folder)  # peft keeps no labels
    processor_of_spec(model.image_spec).save_pretrained(folder)
    (folder / "README.md").write_text(_card(model, adapted), encoding="utf-8")


def merged(network: Any) -> Any:
    """The network without an adapter, which is merged into a copy of it; itself where it has none."""
    return deepcopy(network).merge_and_unload() if isinstance(network, PeftModel) else network


def load_model_folder(folder: Path) -> Any:
    """Load such a folder with nothing but transformers and peft; float32, eval mode.

    Args:
        folder: from `write_model_folder`.
    """
    with quiet_transformers():
        config = AutoConfig.from_pretrained(folder)
        if not (folder / "adapter_config.json").is_file():
            return AutoModelForImageClassification.from_pretrained(folder, dtype=torch.float32).eval()
        adapter = PeftConfig.from_pretrained(folder)
        base = AutoModelForImageClassification.from_pretrained(
            adapter.base_model_name_or_path,
            revision=adapter.revision,
            config=config,
            dtype=torch.float32,
            ignore_mismatched_sizes=True,  # the base's own head, which the adapter's replaces
        )
        with quiet_peft():
            return PeftModel.from_pretrained(base, folder).eval()


@torch.inference_mode()
def reload_difference(model: ViTClassifier, folder: Path, pixel_values: Tensor) -> float:
    """Largest difference of a logit between the model in memory and the folder, reloaded.

    Args:
        model: in memory; it is left in the mode that it was in.
        folder: from `write_model_folder`.
        pixel_values: (B, 3, S, S) float32 normalised, on the CPU.
    """
    was_training = model.training
    ours = model.eval().cpu()(pixel_values)
    model.train(was_training)
    reloaded = load_model_folder(folder)
    words = {"interpolate_pos_encoding": True} if is_resized_base(model.network) else {}
    theirs = reloaded(pixel_values=pixel_values, **words).logits
    return (ours - theirs).abs().max().item()


def stays_adapter(network: Any) -> bool:
    """Whether there is a base that others can load; of an adapter on top of a merged one there is none."""
    return isinstance(network, PeftModel) and not hasattr(network, "merged")


def _config_of_base(network: Any) -> Any:
    """Of a network with an adapter: with the image size of its base, whose weights have no other."""
    config = copy(network.get_base_model().config)
    if is_resized_base(network):
        config.image_size = network.get_base_model().pretrained_image_size
    return config


def is_resized_base(network: Any) -> bool:
    """Whether the base must interpolate its position embeddings in each forward, as its files are for another size."""
    return stays_adapter(network) and hasattr(network.get_base_model(), "pretrained_image_size")


def how_to_load(model: ViTClassifier, adapted: bool) -> str:
    """Python with which others classify a photo by such a folder.

    Args:
        model: that was written.
        adapted: whether its adapter stayed one.
    """
    if not adapted:
        return _LOAD_FULL
    loading = _LOAD_ADAPTER + (_CLASSIFY_RESIZED if is_resized_base(model.network) else _CLASSIFY)
    return loading if can_merge(model.network) else loading.replace(_MERGE, "")


def _card(model: ViTClassifier, adapted: bool) -> str:
    labels = "\n".join(f"- {label}" for label in model.hparams["labels"])
    base = model.hparams["checkpoint"] or "none: trained from scratch"
    return f"""---
library_name: {"peft" if adapted else "transformers"}
pipeline_tag: image-classification
---

# Image classifier

Trained with vitcls. Base: {base}.

## Load it

```python
{how_to_load(model, adapted)}
```

## Classes

{labels}
"""


_LOAD_FULL = """from transformers import pipeline

classify = pipeline("image-classification", "PATH/OF/THIS/FOLDER")
print(classify("photo.jpg"))"""

_MERGE = ".merge_and_unload()"
_LOAD_ADAPTER = """from peft import PeftConfig, PeftModel
from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageClassification

folder = "PATH/OF/THIS/FOLDER"
adapter = PeftConfig.from_pretrained(folder)
base = AutoModelForImageClassification.from_pretrained(
    adapter.base_model_name_or_path,
    revision=adapter.revision,
    config=AutoConfig.from_pretrained(folder),
    ignore_mismatched_sizes=True,
)
model = PeftModel.from_pretrained(base, folder).merge_and_unload()
processor = AutoImageProcessor.from_pretrained(folder)
"""

_CLASSIFY = """
from transformers import pipeline

classify = pipeline("image-classification", model=model, image_processor=processor)
print(classify("photo.jpg"))"""

# A pipeline cannot pass the option on that the base needs for images of another size.
_CLASSIFY_RESIZED = """
from PIL import Image

image = processor(Image.open("photo.jpg").convert("RGB"), return_tensors="pt")
probabilities = model(**image, interpolate_pos_encoding=True).logits.softmax(-1)[0]
print(model.config.id2label[int(probabilities.argmax())], float(probabilities.max()))"""
