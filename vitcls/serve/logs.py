"""One JSON line for each request, without names, addresses or content of images."""

import json
import logging
import traceback
from datetime import UTC, datetime
from typing import Any

log = logging.getLogger(__name__)


def log_request(**facts: Any) -> None:
    """Log a request.

    Args:
        facts: plain values, such as its id, route, status and milliseconds.
    """
    _log("request", facts)


def log_failure(request: str, error: BaseException) -> None:
    """Log a mistake of ours with its traceback, which no client sees.

    Args:
        request: its id, or what else was done.
        error: what was raised.
    """
    _log("failure", {"id": request, "traceback": "".join(traceback.format_exception(error))})


def log_event(message: str) -> None:
    """Log what became of the server itself."""
    _log("server", {"message": message})


def _log(event: str, facts: dict[str, Any]) -> None:
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    log.info("%s", json.dumps({"time": now, "event": event, **facts}, ensure_ascii=False))
