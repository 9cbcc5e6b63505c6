"""The application: its routes, and how it refuses."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from vitcls import __version__
from vitcls.errors import listing, suggestion
from vitcls.serve.access import Access
from vitcls.serve.answers import Problem, State
from vitcls.serve.limits import RETRY_AFTER, Limits, Refusal
from vitcls.serve.metrics import Figures
from vitcls.serve.model_routes import add_model_routes, options_of
from vitcls.serve.pages import add_pages
from vitcls.serve.problems import told
from vitcls.serve.service import Service
from vitcls.serve.watching import Watched

_LONGEST_VALUE = 40  # characters of a wrong value that are repeated


def make_app(service: Service, limits: Limits, access: Access, figures: Figures) -> FastAPI:
    """The application.

    Args:
        service: answers; it starts and stops with the application.
        limits: of requests.
        access: who may ask.
        figures: of the server.
    """
    app = FastAPI(
        title="vitcls",
        version=__version__,
        description=f"Classifies images with {service.engine.name}.",
        docs_url=None,  # FastAPI's pages load their scripts from elsewhere
        redoc_url=None,
        lifespan=_lifespan(service),
    )
    if access.cors:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=access.cors,
            allow_methods=["GET", "POST"],
            allow_headers=["Authorization"],
            expose_headers=["Retry-After", "X-Request-ID"],
        )
    app.add_middleware(Watched, figures=figures, is_draining=lambda: service.is_draining)
    _add_refusals(app, options_of(service.engine))
    _add_state_routes(app, service)
    add_model_routes(app, service, limits, access, figures)
    add_pages(app)
    return app


def _lifespan(service: Service) -> Any:
    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        service.start()
        yield
        await service.stop()

    return lifespan


def _add_refusals(app: FastAPI, options: list[str]) -> None:
    """All that is refused has the shape of a Problem."""

    @app.exception_handler(Refusal)
    async def refused(_: Request, refusal: Refusal) -> JSONResponse:
        return _problem(refusal.status, refusal.message, refusal.image)

    @app.exception_handler(RequestValidationError)
    async def misunderstood(_: Request, error: RequestValidationError) -> JSONResponse:
        return _problem(422, _in_words(error.errors()[0], options))

    @app.exception_handler(HTTPException)
    async def no_route(_: Request, error: HTTPException) -> JSONResponse:
        return _problem(error.status_code, f"{error.detail}.", headers=error.headers)


def _problem(status: int, message: str, image: str | None = None, headers: Any = None) -> JSONResponse:
    retry = {"Retry-After": RETRY_AFTER} if status in (429, 503) else {}
    content = Problem(status=status, message=message, image=image).model_dump(exclude_none=True)
    return JSONResponse(content, status, headers={**(headers or {}), **retry})


def _in_words(mistake: dict[str, Any], options: list[str]) -> str:
    """What pydantic found wrong with an option."""
    name = str(mistake["loc"][-1])[:_LONGEST_VALUE]
    if mistake["type"] == "extra_forbidden":
        return f"There is no option {name!r}{suggestion(name, options)}; there are {listing(options)}."
    return f"{name} is {str(mistake['input'])[:_LONGEST_VALUE]!r}: {mistake['msg']}."


def _add_state_routes(app: FastAPI, service: Service) -> None:
    @app.get("/health", tags=["state"])
    async def health() -> State:
        """Whether the process lives."""
        return State(status="alive")

    @app.get("/ready", responses=told(503), tags=["state"])
    async def ready() -> State:
        """Whether requests are welcome: not before the network is warm, nor once the server is about to stop."""
        if (reason := service.why_not_ready) is not None:
            raise Refusal(503, reason)
        return State(status="ready")
