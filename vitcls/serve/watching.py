"""What is done for every request: an id, a log line, figures, headers, an answer where our code fails."""

import time
import uuid
from collections.abc import Callable

from starlette.datastructures import MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vitcls.serve.answers import Problem
from vitcls.serve.logs import log_failure, log_request
from vitcls.serve.metrics import Figures

GONE = 499  # in the log: the client went away before its answer; nginx' own number
_OTHER = "other"  # all addresses that are none of ours: figures by each of them would never end
_HEADERS = {
    # The page is all that is shown, its own files are all that it loads; an image that was chosen is a blob.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


class Watched:
    """An ASGI application around another.

    Args:
        app: the other.
        figures: to count in.
        is_draining: whether connections are to be closed after their answer.
    """

    def __init__(self, app: ASGIApp, figures: Figures, is_draining: Callable[[], bool]) -> None:
        self._app = app
        self._figures = figures
        self._is_draining = is_draining

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request, start, status = uuid.uuid4().hex, time.perf_counter(), GONE
        scope.setdefault("state", {})["images"] = 0

        async def send_on(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                self._add_headers(MutableHeaders(scope=message), request)
            await send(message)

        try:
            await self._app(scope, receive, send_on)
        except ClientDisconnect:
            pass  # there is nobody to answer
        except Exception as error:  # noqa: BLE001 - the traceback is for the log alone
            log_failure(request, error)
            if status == GONE:
                await _failed()(scope, receive, send_on)
        self._count(scope, request, status, time.perf_counter() - start)

    def _add_headers(self, headers: MutableHeaders, request: str) -> None:
        headers.update(_HEADERS)
        headers["X-Request-ID"] = request
        if self._is_draining():
            headers["Connection"] = "close"  # the client comes back by a new one, to whoever is there then

    def _count(self, scope: Scope, request: str, status: int, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", _OTHER)
        images = scope["state"]["images"]
        self._figures.requests.labels(route, status).inc()
        self._figures.request_seconds.labels(route).observe(seconds)
        log_request(
            id=request,
            method=scope["method"],
            route=route,
            status=status,
            milliseconds=round(1000 * seconds, 1),
            images=images,
        )


def _failed() -> JSONResponse:
    problem = Problem(status=500, message="The server made a mistake, which its log tells.", image=None)
    return JSONResponse(problem.model_dump(), 500)
