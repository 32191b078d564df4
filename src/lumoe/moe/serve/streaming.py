"""Server-sent events, and noticing that nobody listens any more."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import Any

from fastapi import Request

from lumoe.moe.serve.answers import Answer, GenerationError
from lumoe.moe.serve.generation import Piece

log = logging.getLogger(__name__)


async def stream(answer: Answer, include_usage: bool) -> AsyncIterator[str]:
    """Yield the events of an answer; when the client goes away the generator is closed and its sequences end."""
    try:
        for chunk in answer.opening():
            yield answer.event(chunk)
        async for choice, piece in answer.pieces():
            for chunk in answer.chunks(choice, piece):
                yield answer.event(chunk)
        for chunk in answer.last(include_usage):
            yield answer.event(chunk)
    except GenerationError as error:
        yield answer.event(answer.failed(str(error)))
    except Exception as error:
        log.exception("an answer could not be put into words")
        yield answer.event(answer.failed(f"{type(error).__name__}: {error}"))
    finally:
        answer.cancel()
    if end := answer.end():
        yield end


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
