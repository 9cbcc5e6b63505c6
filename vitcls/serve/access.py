"""Who may ask: a bearer token, and the pages of other origins."""

import re
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Annotated

from fastapi import Depends
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from starlette.exceptions import HTTPException

from vitcls.errors import UserError

_ORIGIN = re.compile(r"\*|https?://[^/\s]+")


@dataclass(frozen=True)
class Access:
    """Who may ask.

    Attributes:
        token: that every request for the model has to bring; None: anyone may ask.
        cors: origins whose pages may ask, such as `https://example.org`; `*`: any.
    """

    token: str | None = None
    cors: list[str] = field(default_factory=list)


def check_access(access: Access) -> None:
    """Refuse a token or an origin that no client could send.

    Raises:
        UserError: names it, the token not by its content.
    """
    if access.token is not None and not re.fullmatch(r"[\x21-\x7e]+", access.token):
        raise UserError("The token is empty or has spaces or letters beyond ASCII, which no header can carry.")
    for origin in access.cors:
        if not _ORIGIN.fullmatch(origin):
            raise UserError(
                f"--cors names {origin!r}; an origin is scheme and host alone, such as https://example.org."
            )


def token_check(token: str) -> Callable[..., Awaitable[None]]:
    """A dependency of routes that lets through whoever brings the token."""
    scheme = HTTPBearer(auto_error=False, description="The token that the server was started with.")

    async def check(given: Annotated[HTTPAuthorizationCredentials | None, Depends(scheme)]) -> None:
        # In a time that does not tell how much of it was right.
        if given is None or not secrets.compare_digest(given.credentials.encode(), token.encode()):
            raise HTTPException(401, "The token is missing or wrong", {"WWW-Authenticate": "Bearer"})

    return check
