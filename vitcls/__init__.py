"""vitcls: from a set of labelled images to a classifier that can be trusted.

Importing this package is cheap; the classes below are imported when they are first asked for.
"""

import os
from importlib import import_module
from importlib.metadata import version

# onnxruntime (from 1.29 on) and nncf send their makers what they are used for, unless told before they are imported.
for _variable in ("ORT_DISABLE_TELEMETRY", "NNCF_CI"):
    os.environ.setdefault(_variable, "1")

__version__ = version("vitcls")
__all__ = ["ImageDataModule", "LoRA", "ViTClassifier", "__version__"]

_HOMES = {
    "ImageDataModule": "vitcls.data.datamodule",
    "LoRA": "vitcls.models.adapters",
    "ViTClassifier": "vitcls.models.classifier",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'vitcls' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
