"""Errors in the shape that OpenAI's clients understand."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lumoe.errors import UserError
from lumoe.moe.serve.faulty_fields import Fault

TYPES = {
    401: "authentication_error",
    404: "not_found_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "server_error",
}


class ApiError(Exception):
    """An answer other than success.

    Attributes:
        param: the field of the request that is at fault.
        code: a word for programs.
    """

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers = dict(headers or {})


def error_body(status: int, message: str, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    """Return ``{"error": {message, type, param, code}}``."""
    kind = TYPES.get(status, "invalid_request_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


# The same in the words of Anthropic's interface.
MESSAGES_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    500: "api_error",
    503: "overloaded_error",
}


def messages_error(status: int, message: str) -> dict[str, Any]:
    """Return ``{"type": "error", "error": {type, message}}``."""
    kind = MESSAGES_TYPES.get(status, "invalid_request_error")
    return {"type": "error", "error": {"type": kind, "message": message}}


def _response(path: str, status: int, body: dict[str, Any], headers: Mapping[str, str] | None = None) -> JSONResponse:
    if path.startswith("/v1/messages"):
        body = messages_error(status, body["error"]["message"])
    return JSONResponse(body, status, headers=headers)


def install_handlers(app: FastAPI) -> None:
    """Make every error of the application leave in that shape."""

    async def api_error(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, ApiError)
        body = error_body(error.status, error.message, error.param, error.code)
        return _response(request.url.path, error.status, body, error.headers)

    async def user_error(request: Request, error: Exception) -> JSONResponse:
        return _response(request.url.path, 400, error_body(400, str(error)))

    async def invalid(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        return _response(request.url.path, 400, _first(error, request.headers.get("content-type")))

    async def http(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        text = f"{request.method} {request.url.path}: {error.detail}"
        return _response(request.url.path, error.status_code, error_body(error.status_code, text), error.headers)

    async def unexpected(request: Request, error: Exception) -> JSONResponse:
        return _response(request.url.path, 500, error_body(500, "the server failed; its log says why"))

    app.add_exception_handler(ApiError, api_error)
    app.add_exception_handler(UserError, user_error)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(Exception, unexpected)


class LimitBody:
    """ASGI middleware: a body beyond the limit is 413, in the shape of all other errors (the framework's has none)."""

    def __init__(self, app: ASGIApp, limit: int) -> None:
        self._app, self._limit = app, limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        text = f"the body is larger than the {self._limit} bytes that this server takes"
        announced = Headers(scope=scope).get("content-length", "")
        if announced.isdigit() and int(announced) > self._limit:
            await _response(scope["path"], 413, error_body(413, text))(scope, receive, send)
            return
        total = 0

        async def limited() -> Message:
            nonlocal total
            message = await receive()
            total += len(message.get("body", b""))
            if total > self._limit:
                raise HTTPException(413, text)
            return message

        await self._app(scope, limited, send)


def _first(error: RequestValidationError, content_type: str | None) -> dict[str, Any]:
    first = error.errors()[0]
    if first["type"] == "json_invalid":
        return error_body(400, f"the body is not JSON: {first['ctx']['error']}", None, "invalid_json")
    if isinstance(error.body, bytes):
        sent = "without a content type" if content_type is None else f"as '{content_type[:80]}'"
        text = f"the body was sent {sent}: send 'Content-Type: application/json'"
        return error_body(400, text, None, "invalid_content_type")
    fault = Fault(error.errors(), error.body)
    where = ".".join(map(str, fault.path))
    if not fault.path and first["type"] in ("missing", "model_attributes_type"):
        return error_body(400, "the body must be a JSON object", None, "invalid_value")
    if fault.kind == "extra_forbidden":
        text = f"'{where}' is not a parameter that this server knows"
        return error_body(400, text, fault.field, "unknown_parameter")
    return error_body(400, f"'{where or 'body'}': {fault.message}", fault.field, "invalid_value")
