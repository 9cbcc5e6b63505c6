"""How refusals are told, to clients and in the OpenAPI description."""

from typing import Any

from vitcls.serve.answers import Problem
from vitcls.serve.limits import Refusal

_MEANINGS = {
    400: "The body is no multipart/form-data that can be read.",
    401: "The token is missing or wrong.",
    408: "The body did not arrive in time.",
    413: "Too many images, or one with too many bytes or pixels.",
    415: "The body is no multipart/form-data, or a file is of no image type.",
    422: "An image cannot be decoded, or an option has no such value.",
    429: "As many images wait as are taken; try again after `Retry-After` seconds.",
    503: "The server is warming up or about to stop.",
    504: "There was no answer in time.",
}
OF_UPLOADS = (400, 408, 413, 415, 422, 429, 504)


def told(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """These answers of a route, for OpenAPI."""
    return {status: {"model": Problem, "description": _MEANINGS[status]} for status in statuses}


def problem_of(refusal: Refusal) -> Problem:
    """A refusal as it is answered."""
    return Problem(status=refusal.status, message=refusal.message, image=refusal.image)
