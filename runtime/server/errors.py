"""Errors in OpenAI's shape."""

from __future__ import annotations

from typing import Any

from starlette.responses import JSONResponse

from ...errors import RequestError


def error_body(
    message: str, kind: str = "invalid_request_error", param: str | None = None, code: str | None = None
) -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def error_response(error: RequestError) -> JSONResponse:
    headers = {"Retry-After": "1"} if error.status in (429, 503) else None
    return JSONResponse(error_body(error.message, error.kind, error.param, error.code), error.status, headers)
