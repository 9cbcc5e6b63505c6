"""Sending an exported folder to the Hugging Face Hub."""

import logging
from pathlib import Path

from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import HFValidationError, HTTPError
from huggingface_hub.utils import validate_repo_id

from vitcls.errors import UserError
from vitcls.export.card import is_on_hub
from vitcls.export.shipped import Shipped

log = logging.getLogger(__name__)


def check_push(repo: str, dry_run: bool, to: str, shipped: Shipped) -> None:
    """Refuse what could not be sent, or not be used by others, before any work is done.

    Args:
        repo: id on the Hub.
        dry_run: whether nothing is sent.
        to: the format.
        shipped: what is exported.

    Raises:
        UserError: says what to do.
    """
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise UserError(
            f"--push_to_hub {repo!r} is no name of a repository; give one such as yourname/flowers."
        ) from error
    base = shipped.model.hparams["checkpoint"]
    if to == "adapter" and base is not None and not is_on_hub(base):
        raise UserError(
            f"--push_to_hub would send an adapter whose base, {base!r}, is on this machine alone; send whole weights "
            "with --to huggingface, or train on a base from the Hub."
        )
    if not dry_run and get_token() is None:
        raise UserError("--push_to_hub needs a token of the Hub: run `hf auth login` first, or set HF_TOKEN.")


def push(folder: Path, repo: str, private: bool) -> None:
    """Send a folder, as one commit; the repository is made where there is none.

    Args:
        folder: exported.
        repo: id on the Hub.
        private: whether a new repository is.

    Raises:
        UserError: the Hub cannot be reached or refuses; the folder is kept.
    """
    api = HfApi()
    try:
        api.create_repo(repo, private=private, exist_ok=True)
        sent = api.upload_folder(repo_id=repo, folder_path=folder, commit_message="Exported by vitcls")
    except (HTTPError, OSError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise UserError(
            f"{repo!r} could not be sent to the Hub ({reason}). The export is kept in {folder}; `hf upload {repo} "
            f"{folder}` sends it later."
        ) from error
    log.info("sent: %s", sent)


def tell(folder: Path, repo: str) -> None:
    """Say what would be sent."""
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    for file in files:
        log.info("would send %s (%.2f MB)", file.relative_to(folder), file.stat().st_size / 1e6)
    log.info("%d files to %s; nothing was sent", len(files), repo)
