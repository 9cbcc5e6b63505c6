"""What the config.yaml of a run says of its training, for whoever looks at runs; without torch."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from vitcls.runs import MONITOR


class Choice(NamedTuple):
    """By what the best epoch was chosen.

    Attributes:
        monitor: name of the figure; `epoch`: the last one was kept.
        mode: whether the best is its `max` or its `min`.
    """

    monitor: str
    mode: str = "max"


def choice_of(config: Mapping[str, Any], task: str) -> Choice:
    """That of the configured RunCheckpoint, or else that of the task."""
    said = _section(config, "trainer").get("callbacks")
    for callback in said if isinstance(said, list) else [said]:
        if isinstance(callback, dict) and str(callback.get("class_path")).endswith("RunCheckpoint"):
            arguments = _section(callback, "init_args")
            return Choice(str(arguments.get("monitor") or MONITOR[task]), str(arguments.get("mode") or "max"))
    return Choice(MONITOR[task])


def network_of(config: Mapping[str, Any]) -> str:
    """The checkpoint or architecture that the run started from; empty where none is named."""
    model = _section(config, "model")
    return str(model.get("checkpoint") or _section(model, "architecture").get("model_type", ""))


def trained_of(config: Mapping[str, Any]) -> str:
    """What was trained: an adapter's method, `last N blocks`, `all`, `head` or `bias`; empty without a model."""
    model = _section(config, "model")
    if not model:
        return ""
    if isinstance(model.get("adapter"), dict):
        return str(model["adapter"].get("method", "lora"))
    return f"last {model['last_blocks']} blocks" if model.get("last_blocks") else str(model.get("train", "all"))


def _section(config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = config.get(name)
    return found if isinstance(found, dict) else {}
