"""Server-sent events, and noticing that nobody listens any more."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from typing import Any

from fastapi import Request

from lumoe.moe.serve.answers import Answer, GenerationError
from lumoe.moe.serve.errors import error_body
from lumoe.moe.serve.generation import Piece

log = logging.getLogger(__name__)


def event(value: dict[str, Any] | str) -> str:
    """Return one server-sent event."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return f"data: {text}\n\n"


async def stream(answer: Answer, include_usage: bool) -> AsyncIterator[str]:
    """Yield the events of an answer; when the client goes away the generator is closed and its sequences end."""
    try:
        for chunk in answer.opening():
            yield event(chunk)
        async for choice, piece in answer.pieces():
            yield event(answer.chunk(choice, piece))
        if include_usage:
            yield event(answer.closing())
    except GenerationError as error:
        # The status line is long gone: the error travels as an event, which OpenAI's clients raise.
        yield event(error_body(500, str(error), code="generation_failed"))
    except Exception as error:
        log.exception("an answer could not be put into words")
        yield event(error_body(500, f"{type(error).__name__}: {error}", code="generation_failed"))
    finally:
        answer.cancel()
    yield event("[DONE]")


async def collect(answer: Answer, request: Request) -> dict[str, Any] | None:
    """Return the whole answer, or None if the client went away before it was complete."""
    texts: dict[int, list[Piece]] = {}

    async def gather() -> None:
        async for choice, piece in answer.pieces():
            texts.setdefault(choice, []).append(piece)

    making = asyncio.create_task(gather())
    watching = asyncio.create_task(_gone(request))
    try:
        await asyncio.wait({making, watching}, return_when=asyncio.FIRST_COMPLETED)
        if not making.done():
            return None
        making.result()
        return answer.whole(texts)
    finally:
        answer.cancel()
        for task in (making, watching):
            task.cancel()
        await asyncio.gather(making, watching, return_exceptions=True)


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
