"""Errors as RFC 9457 problem details: one shape for all of them, and never a stack trace."""

import logging
from http import HTTPStatus
from typing import Any, Final

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException

from rec_pipeline.engine.errors import (
    ConfigurationError,
    EventsNotRecordedError,
    InvalidEventError,
    InvalidIdError,
    RecPipelineError,
)

MEDIA_TYPE: Final = "application/problem+json"
CODES: Final[dict[type[RecPipelineError], int]] = {
    InvalidIdError: 422,
    InvalidEventError: 422,
    ConfigurationError: 422,
    EventsNotRecordedError: 503,
}

log = logging.getLogger(__name__)


class Problem(BaseModel):
    """What went wrong (RFC 9457)."""

    type: str = Field("about:blank", description="What kind of problem it is.")
    title: str = Field(description="The status in words.")
    status: int = Field(description="The HTTP status.")
    detail: str = Field(description="What is wrong with this request, or with the service now.")


def problem(status: int, detail: str, headers: dict[str, str] | None = None) -> JSONResponse:
    """Return the response that says so."""
    body = Problem(title=HTTPStatus(status).phrase, status=status, detail=detail)
    return JSONResponse(body.model_dump(), status, headers, MEDIA_TYPE)


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return what OpenAPI says of these statuses."""
    content = {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
    return {status: {"description": HTTPStatus(status).phrase, "content": content} for status in statuses}


def install(app: FastAPI) -> None:
    """Make every error of ``app`` a problem."""

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        found = "; ".join(f"{'.'.join(str(part) for part in entry['loc'])}: {entry['msg']}" for entry in error.errors())
        return problem(422, _printable(found))

    @app.exception_handler(HTTPException)
    async def refused(_: Request, error: HTTPException) -> JSONResponse:
        return problem(error.status_code, str(error.detail), dict(error.headers or {}))

    @app.exception_handler(RecPipelineError)
    async def known(_: Request, error: RecPipelineError) -> JSONResponse:
        status = next((code for kind, code in CODES.items() if isinstance(error, kind)), 503)
        return problem(status, _printable(str(error)), {"Retry-After": "1"} if status == 503 else None)

    @app.exception_handler(Exception)
    async def unexpected(_: Request, error: Exception) -> JSONResponse:
        log.error("unexpected %s", type(error).__name__, exc_info=error)
        return problem(500, "The service failed; its log says why.")


def _printable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()
