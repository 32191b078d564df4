"""The HTTP application: OpenAI's and Anthropic's endpoints, the budget, metrics and the page."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, TypeVar

from fastapi import Depends, FastAPI, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, StreamingResponse
from fastapi.security import APIKeyHeader, HTTPAuthorizationCredentials, HTTPBearer
from pydantic import ValidationError
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.trustedhost import TrustedHostMiddleware

from lumoe import __version__
from lumoe.moe.serve.answers import Answer, GenerationError
from lumoe.moe.serve.budget import add_budget
from lumoe.moe.serve.chat import ChatAnswer
from lumoe.moe.serve.completion import CompletionAnswer, Echo, echo
from lumoe.moe.serve.constraints import Constraint, ConstraintError, Form, Freedom
from lumoe.moe.serve.conversation import Conversation, FieldError
from lumoe.moe.serve.detokenizer import TokenBytes
from lumoe.moe.serve.errors import ApiError, LimitBody, install_handlers
from lumoe.moe.serve.follower import SPARE_BYTES, GroupFollower, allowed
from lumoe.moe.serve.generation import Generation
from lumoe.moe.serve.governor import Governor
from lumoe.moe.serve.messages import CountRequest, MessageAnswer, MessagesRequest
from lumoe.moe.serve.metrics import CountResponses, Metrics
from lumoe.moe.serve.prompts import Prompts
from lumoe.moe.serve.responses import ResponseAnswer, ResponsesRequest
from lumoe.moe.serve.scheduler import ClosedError, Limits, QueueFullError, Scheduler
from lumoe.moe.serve.schemas import (
    ChatRequest,
    CompletionRequest,
    ModelCard,
    ModelList,
)
from lumoe.moe.serve.state import Readings, page_state
from lumoe.moe.serve.streaming import collect, stream
from lumoe.moe.serve.tokenization import (
    DetokenizeRequest,
    DetokenizeResponse,
    TokenizeRequest,
    TokenizeResponse,
)
from lumoe.resources import package_path

# A prompt that fills a context of 128 Ki tokens has about half a MB.
MAX_BODY_BYTES = 4 << 20
T = TypeVar("T")
# Forms that take longer to compile are refused.
COMPILE_S = 10


class Server:
    """An engine with its scheduler, governor and metrics, between start and stop of the application."""

    def __init__(
        self,
        prompts: Prompts,
        governor: Governor,
        metrics: Metrics,
        name: str,
        limits: Limits,
        api_key: str | None = None,
        state: Path | None = None,
    ) -> None:
        self.engine, self.prompts, self.governor, self.metrics = governor.engine, prompts, governor, metrics
        self.name, self.limits, self.api_key, self.state = name, limits, api_key, state
        self.started = int(time.time())
        self.readings = Readings()
        self.scheduler: Scheduler | None = None
        self._follower: GroupFollower | None = None

    @asynccontextmanager
    async def running(self, app: FastAPI) -> AsyncIterator[None]:
        """Run the scheduler while the application runs."""
        loop = asyncio.get_running_loop()
        self.scheduler = Scheduler(self.governor, self.metrics, self.limits, lambda call: _post(loop, call))
        self.follow(self.governor.follows)
        try:
            yield
        finally:
            self.follow(False)
            await run_in_threadpool(self.scheduler.close)
            self.governor.close()

    @property
    def active(self) -> Scheduler:
        """The scheduler."""
        assert self.scheduler is not None, "the application has not started"
        return self.scheduler

    def group_budget(self) -> int:
        """Return the budget that the control group leaves now, within what this model can run in.

        Raises:
            UserError: no group limits this process.
        """
        governor = self.governor
        return max(min(allowed(governor, SPARE_BYTES), governor.most_bytes), governor.minimum_bytes)

    def follow(self, wanted: bool) -> None:
        """Let the budget follow the control group's limit, or stop it."""
        if self._follower is not None:
            self._follower.close()
        self._follower = GroupFollower(self.governor, self.active, SPARE_BYTES) if wanted else None
        self.governor.follows = wanted

    def submit(self, answer: Answer) -> None:
        """Queue the sequences of an answer.

        Raises:
            ApiError: 429 when the queue is full, 503 when the server shuts down.
        """
        room = self.limits.slots + self.limits.queue
        if len(answer.generations) > room:
            raise ApiError(400, f"{len(answer.generations)} choices exceed what this server holds, {room}", "n")
        try:
            self.active.submit(answer.generations)
        except QueueFullError as error:
            text = f"{error}; try again in {error.retry_after_s} s"
            raise ApiError(429, text, code="queue_full", headers={"Retry-After": str(error.retry_after_s)}) from None
        except ClosedError as error:
            raise ApiError(503, str(error), code="shutting_down", headers={"Retry-After": "5"}) from None


def _post(loop: asyncio.AbstractEventLoop, call: Any) -> None:
    if not loop.is_closed():
        loop.call_soon_threadsafe(call)


def create_app(server: Server, hosts: list[str] | None = None, origins: Sequence[str] = ()) -> FastAPI:
    """Return the application.

    Args:
        hosts: values of the Host header to answer to; None answers to any. Naming them keeps a web page of another
            site, whose name was made to resolve to this address, from talking to the server.
        origins: sites whose pages may read the answers, such as ``https://chat.example``.
    """
    app = FastAPI(
        title="lumoe",
        version=__version__,
        description=__doc__,
        lifespan=server.running,
        redoc_url=None,
        docs_url=None,
    )
    install_handlers(app)
    if origins:
        # Within the check of the host: a page of these sites, too, has to know the server by its name.
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(origins),
            allow_methods=["GET", "POST", "PUT"],
            allow_headers=["*"],
            expose_headers=["Retry-After"],
        )
    if hosts is not None:
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=hosts)
    app.add_middleware(LimitBody, limit=MAX_BODY_BYTES)
    app.add_middleware(CountResponses, metrics=server.metrics)
    _add_public(app, server)
    _add_openai(app, server)
    _add_responses(app, server)
    _add_messages(app, server)
    _add_tokenizer(app, server)
    add_budget(app, server, _guard(server))
    _add_state(app, server)
    for name in ("CompletionRequest", "ChatRequest", "ResponsesRequest", "MessagesRequest", "CountRequest"):
        # The document says which model there is, so that a client made from it asks for that one.
        app.openapi()["components"]["schemas"][name]["properties"]["model"]["enum"] = [server.name]
    return app


_bearer = HTTPBearer(auto_error=False, description="the API key, where the server has one")


_header = APIKeyHeader(name="x-api-key", auto_error=False, description="the same, as Anthropic's clients send it")


def _guard(server: Server) -> Any:
    async def check(
        credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)],
        key: Annotated[str | None, Depends(_header)],
    ) -> None:
        if server.api_key is None:
            return
        # A client made for one interface and told the key of another sends both.
        given = [credentials.credentials if credentials else "", key or ""]
        if not any(secrets.compare_digest(one.encode(), server.api_key.encode()) for one in given):
            text = "this server needs its API key: send 'Authorization: Bearer KEY' or 'x-api-key: KEY'"
            raise ApiError(401, text, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})

    return Depends(check)


def _add_public(app: FastAPI, server: Server) -> None:
    @app.get("/", include_in_schema=False)
    async def page() -> FileResponse:
        return FileResponse(package_path("moe", "serve", "page", "index.html"))

    @app.get("/health")
    async def health() -> JSONResponse:
        """Whether the engine runs; 503 if it does not."""
        well = server.active.alive and server.governor.loader.fault is None
        body = {"status": "ok" if well else "failing", "fault": server.governor.loader.fault, "model": server.name}
        return JSONResponse(body, 200 if well else 503)

    @app.get("/metrics", response_class=Response)
    async def metrics() -> Response:
        """Counters, gauges and histograms in the Prometheus text format."""
        server.metrics.sample(server.active.running, server.active.waiting)
        return Response(server.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


def _add_openai(app: FastAPI, server: Server) -> None:
    guard = _guard(server)

    @app.get("/v1/models", dependencies=[guard])
    async def models() -> ModelList:
        """List the one model."""
        return ModelList(data=[ModelCard(id=server.name, created=server.started)])

    # A name may have slashes, as those of organisations have.
    @app.get("/v1/models/{model:path}", dependencies=[guard])
    async def model(model: str) -> ModelCard:
        """Describe a model."""
        _check_model(server, model)
        return ModelCard(id=server.name, created=server.started)

    @app.post("/v1/completions", dependencies=[guard], response_model=None)
    async def completions(body: CompletionRequest, request: Request) -> Response:
        """Continue a text."""
        _check_model(server, body.model)
        drawn = _told(body.drawn)
        encode = partial(server.prompts.encode, special=body.add_special_tokens is not False)
        prompts = [await run_in_threadpool(encode, prompt) for prompt in body.prompts]
        echoes = list[Echo]()
        if body.echo:
            tokens = _shown(server.prompts.tokens, body)
            echoes = await run_in_threadpool(echo, server.prompts, body.prompts, prompts, tokens, body.logprobs)
        answer = CompletionAnswer(server.name, server.prompts, body.logprobs, drawn, body.n or 1, echoes)
        return await _answer(server, answer, body, prompts, body.max_tokens, request)

    @app.post("/v1/chat/completions", dependencies=[guard], response_model=None)
    async def chat(body: ChatRequest, request: Request) -> Response:
        """Answer the last message of a conversation."""
        _check_model(server, body.model)
        if body.top_logprobs is not None and not body.logprobs:
            raise ApiError(400, "'top_logprobs' needs 'logprobs': true", "top_logprobs", "invalid_value")
        conversation = _conversation(body)
        prompt = await run_in_threadpool(server.prompts.encode_chat, conversation)
        top = (body.top_logprobs or 0) if body.logprobs else None
        answer = ChatAnswer(server.name, server.prompts, prompt, top, conversation.parallel)
        most = body.max_completion_tokens or body.max_tokens
        return await _answer(server, answer, body, [prompt.ids], most, request)


def _add_responses(app: FastAPI, server: Server) -> None:
    @app.post("/v1/responses", dependencies=[_guard(server)], response_model=None)
    async def responses(body: ResponsesRequest, request: Request) -> Response:
        """Answer the last item of a conversation; nothing is stored."""
        _check_model(server, body.model)
        chat = _translated(body)
        conversation = _conversation(chat)
        prompt = await run_in_threadpool(server.prompts.encode_chat, conversation)
        answer = ResponseAnswer(server.name, server.prompts, prompt, conversation.parallel, body)
        return await _answer(server, answer, chat, [prompt.ids], body.max_output_tokens, request)


def _add_messages(app: FastAPI, server: Server) -> None:
    guard = _guard(server)

    @app.post("/v1/messages", dependencies=[guard], response_model=None)
    async def messages(body: MessagesRequest, request: Request) -> Response:
        """Answer the last message of a conversation, as Anthropic's interface does."""
        _check_model(server, body.model)
        chat = _translated(body)
        conversation = _conversation(chat)
        prompt = await run_in_threadpool(server.prompts.encode_chat, conversation)
        answer = MessageAnswer(server.name, server.prompts, prompt, conversation.parallel)
        return await _answer(server, answer, chat, [prompt.ids], body.max_tokens, request)

    @app.post("/v1/messages/count_tokens", dependencies=[guard])
    async def count(body: CountRequest) -> dict[str, int]:
        """Count the tokens of a conversation."""
        _check_model(server, body.model)
        prompt = await run_in_threadpool(server.prompts.laid_out, _conversation(_translated(body)))
        return {"input_tokens": len(prompt.ids)}


def _add_tokenizer(app: FastAPI, server: Server) -> None:
    guard = _guard(server)

    @app.post("/tokenize", dependencies=[guard])
    async def tokenize(body: TokenizeRequest) -> TokenizeResponse:
        """Return the token ids of a text or a conversation, however many they are."""
        _check_model(server, body.model or server.name)
        if body.prompt is not None:
            special = body.add_special_tokens is not False
            tokens = await run_in_threadpool(server.prompts.ids, body.prompt, special)
        else:
            conversation = _conversation(_translated(body))
            laid_out = await run_in_threadpool(server.prompts.laid_out, conversation, bool(body.add_special_tokens))
            tokens = laid_out.ids
        return TokenizeResponse(count=len(tokens), max_model_len=server.limits.context, tokens=tokens)

    @app.post("/detokenize", dependencies=[guard])
    async def detokenize(body: DetokenizeRequest) -> DetokenizeResponse:
        """Return the text of token ids."""
        _check_model(server, body.model or server.name)
        return DetokenizeResponse(prompt=await run_in_threadpool(server.prompts.decode, body.tokens))

    @app.post("/v1/embeddings", dependencies=[guard], include_in_schema=False)
    async def embeddings() -> None:
        raise ApiError(400, "this server generates text only; it has no embeddings", code="not_supported")


def _translated(body: ResponsesRequest | CountRequest | TokenizeRequest) -> ChatRequest:
    try:
        return body.chat()
    except ValidationError as error:
        raise RequestValidationError(error.errors()) from None


def _add_state(app: FastAPI, server: Server) -> None:
    @app.get("/v1/state", dependencies=[_guard(server)])
    async def state() -> dict[str, Any]:
        """Everything that the page at `/` shows."""
        return await run_in_threadpool(page_state, server.governor, server.metrics, server.active, server.readings)


def _conversation(body: ChatRequest) -> Conversation:
    return _told(body.conversation)


def _told(made: Callable[[], T]) -> T:
    """Return what is made of a request; what its fields do not allow is told to the client."""
    try:
        return made()
    except FieldError as error:
        raise ApiError(400, str(error), error.field, "invalid_value") from None


def _shown(tokens: TokenBytes, body: CompletionRequest | ChatRequest) -> TokenBytes:
    return tokens.showing_all() if body.skip_special_tokens is False else tokens


def _check_model(server: Server, name: str) -> None:
    if name != server.name:
        text = f"the model '{name[:80]}' does not exist; this server has '{server.name}'"
        raise ApiError(404, text, "model", "model_not_found")


async def _form(server: Server, constraint: Constraint | None, freedom: Freedom) -> Form | None:
    if constraint is None:
        return None
    grammars, loop = server.prompts.grammars, asyncio.get_running_loop()
    compiling = loop.run_in_executor(grammars.threads, grammars.compile, constraint)
    try:
        return Form(await asyncio.wait_for(compiling, COMPILE_S), freedom)
    except ConstraintError as error:
        text = str(error)
    except TimeoutError:
        text = f"it was not compiled within {COMPILE_S} s"
    field = constraint.field
    raise ApiError(400, f"'{field}': {text}", field.partition(".")[0], "invalid_value") from None


async def _answer(
    server: Server,
    answer: Answer,
    body: CompletionRequest | ChatRequest,
    prompts: list[list[int]],
    max_tokens: int | None,
    request: Request,
) -> Response:
    answer.prompt_tokens = sum(map(len, prompts))
    server.prompts.check_known(body.logit_bias or (), "logit_bias")
    tokens = _shown(answer.tokens, body)
    ends = frozenset(body.stop_token_ids or ()) | (frozenset() if body.ignore_eos else server.prompts.end_tokens)
    form = await _form(server, *answer.held_to(body.constraint()))
    if form is not None and body.min_tokens:
        text = "'min_tokens' cannot be asked of an answer that is held to a form: that says where it ends"
        raise ApiError(400, text, "min_tokens", "invalid_value")
    for prompt in prompts:
        limit = server.prompts.limit(prompt, max_tokens)
        if (body.min_tokens or 0) > limit:
            text = f"'min_tokens': {body.min_tokens} are more than the {limit} tokens that the answer may have"
            raise ApiError(400, text, "min_tokens", "invalid_value")
        for choice in range(body.drawn()):
            answer.add(
                Generation(
                    prompt,
                    replace(body.sampling(choice, limit, answer.top), form=form),
                    tokens,
                    answer.sink(len(answer.generations)),
                    stops=body.stops,
                    end_tokens=ends,
                    preference=body.preference,
                )
            )
    server.submit(answer)
    if body.stream:
        return StreamingResponse(
            stream(answer, body.include_usage), media_type="text/event-stream", headers={"Cache-Control": "no-store"}
        )
    try:
        whole = await collect(answer, request)
    except GenerationError as error:
        raise ApiError(500, str(error), code="generation_failed") from None
    return JSONResponse(whole, 200) if whole is not None else Response(status_code=499)
