"""Of what the parts of a predict are: what has to be the same where another goes on with them."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import xxhash
from torch import Tensor

from vitcls.errors import UserError, listing


def digest_of(weights: Mapping[str, Tensor]) -> str:
    """A digest of weights, whatever file they came from."""
    digest = xxhash.xxh3_128()
    for name, tensor in sorted(weights.items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def keep_record(file: Path, record: Mapping[str, Any]) -> None:
    """Write down of what the parts are."""
    file.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def check_record(file: Path, record: Mapping[str, Any]) -> None:
    """Refuse to go on with parts of something else.

    Args:
        file: what was written down.
        record: what it is now, by what a user calls it.

    Raises:
        UserError: names what differs.
    """
    try:
        kept = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        kept = {}
    now = json.loads(json.dumps(record))
    others = [name for name, value in now.items() if kept.get(name) != value]
    if others:
        raise UserError(
            f"--resume cannot go on with what an interrupted predict left in {str(file.parent)!r}: it is of other "
            f"{listing(others)}. Say again what was said then, or begin anew without --resume, which deletes it."
        )
