"""Of what predictions are: what has to be the same where another predict goes on with them."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import xxhash
from torch import Tensor

from vitcls.errors import UserError, listing
from vitcls.runs import write_text


def digest_of(weights: Mapping[str, Tensor]) -> str:
    """A digest of weights, whatever file they came from."""
    digest = xxhash.xxh3_128()
    for name, tensor in sorted(weights.items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def keep_record(file: Path, record: Mapping[str, Any]) -> None:
    """Write down of what the predictions are."""
    write_text(file, json.dumps(record, indent=1) + "\n")


def check_record(file: Path, record: Mapping[str, Any], what: str) -> None:
    """Refuse to go on with predictions of something else.

    Args:
        file: what was written down.
        record: what it is now, by what a user calls it.
        what: there is, for the sentence.

    Raises:
        UserError: names what differs, or the file where it is missing or damaged.
    """
    try:
        kept = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"--resume cannot go on with {what}: {str(file)!r}, which says of what it is, is missing or damaged "
            f"({error}). Begin anew without --resume, which replaces it."
        ) from error
    now = json.loads(json.dumps(record))
    others = [name for name, value in now.items() if not isinstance(kept, dict) or kept.get(name) != value]
    if others:
        raise UserError(
            f"--resume cannot go on with {what}: it is of other {listing(others)}. Say again what was said then, or "
            "begin anew without --resume, which replaces it."
        )
