"""The budget over HTTP: what is held, what a plan is predicted to give and what was measured, and how to change it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from fastapi import FastAPI
from fastapi.concurrency import run_in_threadpool
from pydantic import BaseModel, ConfigDict, Field, field_validator

from lumoe.errors import UserError
from lumoe.moe.planning.budget import parse_budget
from lumoe.moe.planning.plan import Preference
from lumoe.moe.planning.planner import Proposal
from lumoe.moe.planning.shape import KV_BLOCK
from lumoe.moe.serve.errors import ApiError
from lumoe.moe.serve.governor import Governor
from lumoe.moe.serve.last_budget import GROUP, write_last
from lumoe.moe.serve.metrics import Metrics
from lumoe.moe.serve.scheduler import ClosedError

if TYPE_CHECKING:
    from lumoe.moe.serve.app import Server

Count = Annotated[int, Field(strict=True)]


class BudgetRequest(BaseModel):
    """`PUT /v1/budget` and its preview: what is left out stays as it is."""

    model_config = ConfigDict(extra="forbid")

    budget: str | Count | None = Field(
        default=None, description="bytes, or text such as 24GB, 22.5GiB or 30%; cgroup follows the control group"
    )
    preference: Preference | None = None

    @field_validator("budget", mode="before")
    @classmethod
    def _whole(cls, value: Any) -> Any:
        return int(value) if isinstance(value, float) and value.is_integer() else value

    @field_validator("budget")
    @classmethod
    def _positive(cls, value: str | int | None) -> str | int | None:
        if isinstance(value, int) and not 0 < value < 2**63:
            raise ValueError(f"must be from 1 to {2**63 - 1} bytes")
        if isinstance(value, str) and len(value) > 32:
            raise ValueError("write it like 24GB, 22.5GiB or 30%")
        return value


class Predicted(BaseModel):
    """What the cost model of this machine says of a plan, for one sequence of `prompt_tokens` and `new_tokens`."""

    tokens_per_s: float
    prefill_s: float
    decode_s: float
    prompt_tokens: int
    new_tokens: int


class Measured(BaseModel):
    """What was measured under the plan in force.

    Attributes:
        decode_s: median time of the last decode steps of one sequence alone; None before there were any.
        tokens_per_s: of all sequences together, over the last seconds.
    """

    decode_s: float | None
    tokens_per_s: float


class PlanResponse(BaseModel):
    """A plan, and what it is predicted to give."""

    budget_bytes: int
    preference: Preference
    bytes_planned: int = Field(description="weights outside the experts, resident experts and swap buffers")
    quantized_experts: int
    resident_experts: int
    experts: int
    context_tokens: int = Field(description="whose keys and values fit the rest of the budget, over all sequences")
    predicted: Predicted | None = Field(description="null without a profile of this machine (lumoe moe calibrate)")
    perplexity_increase: float | None = Field(description="relative to 16 bits; null if it was not measured")
    why: str


class BudgetResponse(BaseModel):
    """The budget and what the server does with it."""

    budget_bytes: int
    minimum_bytes: int
    whole_bytes: int
    most_bytes: int
    follows: str | None = Field(description="cgroup, if the budget follows the control group's limit")
    preference: Preference
    planned_for: Preference
    bytes_fast: int = Field(description="weights in the fast tier, swap buffers among them")
    bytes_kv: int = Field(description="keys and values, those of idle prefixes among them")
    kv_limit_bytes: int
    quantized_experts: int
    resident_experts: int
    experts: int
    settled: bool = Field(description="whether every expert that the plan keeps in the fast tier is there")
    plan: PlanResponse
    measured: Measured


def plan_response(governor: Governor, budget_bytes: int, preference: Preference) -> PlanResponse:
    """Return the plan for a budget; any thread may ask.

    Raises:
        UserError: the budget is too small, or more than a GPU has.
    """
    proposal, costs = governor.propose(budget_bytes, preference), governor.planner.costs
    predicted = proposal.prediction
    work = None if costs is None else costs.workload
    return PlanResponse(
        budget_bytes=budget_bytes,
        preference=preference,
        bytes_planned=proposal.bytes_fast,
        quantized_experts=proposal.plan.quantized_experts,
        resident_experts=proposal.plan.resident_experts,
        experts=proposal.plan.bits.size,
        context_tokens=_context(governor, proposal),
        predicted=None
        if predicted is None or work is None
        else Predicted(
            tokens_per_s=predicted.tokens_per_s,
            prefill_s=predicted.prefill_s,
            decode_s=predicted.decode_s,
            prompt_tokens=work.prompt_tokens,
            new_tokens=work.new_tokens,
        ),
        perplexity_increase=None if np.isnan(proposal.increase) else proposal.increase,
        why=proposal.why,
    )


def budget_state(governor: Governor, metrics: Metrics) -> BudgetResponse:
    """Return the budget and what the fast tier holds."""
    engine, pool = governor.engine, governor.pool
    plan = engine.plan
    return BudgetResponse(
        budget_bytes=governor.budget_bytes,
        minimum_bytes=governor.minimum_bytes,
        whole_bytes=governor.whole_bytes,
        most_bytes=governor.most_bytes,
        follows=GROUP if governor.follows else None,
        preference=governor.default,
        planned_for=governor.preference,
        bytes_fast=engine.bytes_fast,
        bytes_kv=pool.nbytes,
        kv_limit_bytes=pool.cache.limit * pool.cache.block_bytes,
        quantized_experts=plan.quantized_experts,
        resident_experts=int(engine.store.resident().sum()),
        experts=plan.bits.size,
        settled=governor.settled,
        plan=plan_response(governor, governor.budget_bytes, governor.preference),
        measured=Measured(decode_s=metrics.decode_s(), tokens_per_s=metrics.tokens_per_s()),
    )


def add_budget(app: FastAPI, server: Server, guard: Any) -> None:
    """Add the endpoints of the budget; `guard` is what they depend on."""
    governor = server.governor

    def asked(body: BudgetRequest) -> tuple[int, Preference]:
        value = governor.budget_bytes if body.budget is None else body.budget
        if value == GROUP:
            value = server.group_budget()
        amount = parse_budget(value, governor.whole_bytes) if isinstance(value, str) else value
        return amount, body.preference or governor.default

    @app.get("/v1/budget", dependencies=[guard])
    async def budget() -> BudgetResponse:
        """What the fast tier may hold, what it holds, what the plan is predicted to give and what was measured."""
        return await run_in_threadpool(budget_state, governor, server.metrics)

    @app.post("/v1/budget/preview", dependencies=[guard])
    async def preview(body: BudgetRequest) -> PlanResponse:
        """What a budget and a preference would give; nothing changes."""
        return await run_in_threadpool(plan_response, governor, *asked(body))

    @app.put("/v1/budget", dependencies=[guard])
    async def set_budget(body: BudgetRequest) -> BudgetResponse:
        """Change budget or default preference; answers when freed memory is back with the system."""
        amount, preference = asked(body)
        # Planned here, so that the running steps need not wait for it.
        await run_in_threadpool(governor.propose, amount, preference)
        if body.budget is not None:
            server.follow(body.budget == GROUP)
        try:
            change = server.active.call(lambda: governor.set_budget(amount, preference))
        except ClosedError as error:
            raise ApiError(503, str(error), code="shutting_down") from None
        await asyncio.wrap_future(change)
        if server.state is not None:
            try:
                last = GROUP if governor.follows else governor.budget_bytes
                await run_in_threadpool(write_last, server.state, last, governor.default)
            except UserError as error:
                raise ApiError(500, f"the budget is in force, but a restart would not know it: {error}") from None
        return await run_in_threadpool(budget_state, governor, server.metrics)


def _context(governor: Governor, proposal: Proposal) -> int:
    whole = governor.pool.cache.blocks * KV_BLOCK
    return whole if proposal.context_tokens is None else min(proposal.context_tokens, whole)
