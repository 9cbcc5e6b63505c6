"""The machine that figures were measured on."""

import os
import platform
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from vitcls.data.loaders import usable_cores

_LIBRARIES = ("torch", "torchvision", "pillow", "simplejpeg", "numpy")


def machine(*libraries: str) -> dict[str, Any]:
    """The processor, the cores that may be used, and the versions of what computes, decodes and resizes.

    Args:
        libraries: whose versions count besides.
    """
    return {
        "processor": _processor(),
        "cores": usable_cores(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "python": platform.python_version(),
        **{name: version(name) for name in (*_LIBRARIES, *libraries)},
    }


def _processor() -> str:
    with suppress(OSError):  # Linux; elsewhere Python knows it
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
