"""The routes that ask the model."""

from collections.abc import Awaitable, Callable
from typing import Annotated, Any, cast

from fastapi import APIRouter, Depends, FastAPI, Query, Request
from fastapi.responses import PlainTextResponse, Response

from vitcls.serve.access import Access, token_check
from vitcls.serve.answers import Answer, Answers, Labels, Outcome, Outcomes, Wanted, answer_of, wanted_of
from vitcls.serve.asking import Asking
from vitcls.serve.engine import Engine
from vitcls.serve.limits import Limits, Refusal
from vitcls.serve.metrics import Figures
from vitcls.serve.problems import OF_UPLOADS, problem_of, told
from vitcls.serve.service import Service
from vitcls.serve.uploads import FIELD, Upload
from vitcls.types import Task


def options_of(engine: Engine) -> list[str]:
    """Names of what can be asked besides an image."""
    return list(wanted_of(engine).model_fields)


def add_model_routes(app: FastAPI, service: Service, limits: Limits, access: Access, figures: Figures) -> None:
    """Give an application the routes that ask the model; who asks needs the token, if there is one."""
    router = APIRouter(
        tags=["model"],
        dependencies=[Depends(token_check(access.token))] if access.token else [],
        responses=told(401) if access.token else None,
    )
    asking = Asking(limits)
    figures.waiting.set_function(lambda: asking.places.taken)
    _add_predicting(router, service, asking, figures, limits.max_images)
    if service.engine.attributed is not None:
        _add_attribution(router, service, asking)
    _add_facts(router, service.engine, figures)
    app.include_router(router)


def _add_predicting(router: APIRouter, service: Service, asking: Asking, figures: Figures, most: int) -> None:
    engine = service.engine
    wanted_type: Any = wanted_of(engine)
    described: dict[str, Any] = {"responses": told(*OF_UPLOADS), "openapi_extra": _body(most)}
    described["response_model_exclude_none"] = True

    def answering(wanted: Wanted) -> Callable[[Upload], Awaitable[Answer]]:
        async def answer(upload: Upload) -> Answer:
            return answer_of(engine, upload.name, await service.probabilities(upload), wanted)

        return answer

    @router.post("/predict", **described)
    async def predict(request: Request, wanted: Annotated[wanted_type, Query()]) -> Answers:
        """Classify all images of a request, or none: a refusal names the first that cannot be."""
        answers = await asking.all(request, answering(wanted))
        figures.images.inc(len(answers))
        return Answers(model=engine.name, images=answers)

    @router.post("/predict/batch", **described)
    async def predict_batch(request: Request, wanted: Annotated[wanted_type, Query()]) -> Outcomes:
        """Classify each image by itself: one that cannot be has an `error` in place of its `answer`."""
        found = await asking.each(request, answering(wanted))
        figures.images.inc(sum(isinstance(one, Answer) for one in found))
        return Outcomes(model=engine.name, images=[_outcome(one) for one in found])


def _outcome(found: Answer | Refusal) -> Outcome:
    if isinstance(found, Answer):
        return Outcome(image=found.image, answer=found)
    return Outcome(image=found.image or "", error=problem_of(found))


def _add_attribution(router: APIRouter, service: Service, asking: Asking) -> None:
    png: dict[int | str, dict[str, Any]] = {200: {"content": {"image/png": {}}, "description": "A PNG."}}

    @router.post(
        "/attribution",
        response_class=Response,
        responses={**png, **told(*OF_UPLOADS)},
        openapi_extra=_body(1),
    )
    async def attribution(request: Request) -> Response:
        """Where the network looked, as a picture: the image in grey, what spoke for its best class in colour."""
        (picture,) = await asking.all(request, service.attributed, most=1)
        return Response(picture, media_type="image/png")


def _add_facts(router: APIRouter, engine: Engine, figures: Figures) -> None:
    @router.get("/labels", response_model_exclude_none=True)
    async def labels() -> Labels:
        """What the model knows."""
        chosen = dict(zip(engine.labels, engine.thresholds.tolist(), strict=True))
        return Labels(
            model=engine.name,
            task=cast(Task, engine.task),
            labels=engine.labels,
            thresholds=chosen if engine.task == "multilabel" else None,
            attribution=engine.attributed is not None,
        )

    @router.get("/metrics", response_class=PlainTextResponse)
    async def metrics() -> PlainTextResponse:
        """Figures of the server, as Prometheus reads them."""
        return PlainTextResponse(figures.text())


def _body(most: int) -> dict[str, Any]:
    """How a body of images is described, which is read without FastAPI."""
    files = {"type": "array", "items": {"type": "string", "format": "binary"}, "minItems": 1, "maxItems": most}
    schema = {"type": "object", "properties": {FIELD: files}, "required": [FIELD], "additionalProperties": False}
    return {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": schema}}}}
