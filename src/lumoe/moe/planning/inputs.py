"""What a planner is built from: measurements found on disk and the sizes of a model's parts; its answer in words."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lumoe.errors import UserError, about
from lumoe.files import read_csv, read_yaml
from lumoe.moe.planning.caching import Caching
from lumoe.moe.planning.caching_choice import read_hit_rates
from lumoe.moe.planning.cost import CostModel, Workload
from lumoe.moe.planning.hardware import read_hardware
from lumoe.moe.planning.parts import Parts, amount, number
from lumoe.moe.planning.perplexities import PERPLEXITY_COLUMNS
from lumoe.moe.planning.placement import PaperRules, random_order
from lumoe.moe.planning.plan import FULL_BITS, Memory
from lumoe.moe.planning.planner import (
    Increase,
    Planner,
    Proposal,
    Wish,
    measured_increase,
    summed_increase,
    unknown_increase,
)
from lumoe.moe.planning.scaling import scaled
from lumoe.moe.planning.sensitivity import COLUMNS, cheapest_first, cost_table
from lumoe.moe.planning.shape import ModelShape
from lumoe.resources import data_path

MACHINE = "machine.json"
RESIDENCY = "residency-calibration.csv"
HUB = "hub:"  # what the names of models on the Hugging Face hub begin with here
UNMEASURED = "not measured"
# What is known of quality where each expert's own cost is.
MODELLED = "modelled: sum of the experts' measured divergences"


@dataclass(frozen=True)
class Known:
    """Where each kind of knowledge about a model on a machine stands; None where there is none."""

    model: str
    hardware: str | None
    quantized: Path | None
    perplexity: Path | None
    sensitivity: Path | None
    residency: Path | None = None

    @classmethod
    def find(
        cls,
        model: str,
        measurements: Path | None = None,
        hardware: str | None = None,
        quantized: Path | None = None,
        perplexity: Path | None = None,
        residency: Path | None = None,
    ) -> Known:
        """Look for measurements in their folder (`results/moe/NAME` of the model); what is given goes first.

        A shipped shape has its published profile and perplexities.

        Raises:
            UserError: the folder of measurements that is given has no hardware profile, and none is given beside it.
        """
        found = cls.measured(model, measurements, quantized)
        name = _name(model)
        hardware = hardware or found.hardware or _published_hardware(name)
        if hardware is None and measurements is not None:
            raise UserError(
                f"{measurements / MACHINE}: no profile of this machine; measure one with `lumoe moe calibrate` or give "
                "--hardware"
            )
        published = _if_there(data_path("measurements", f"{name}-perplexity.csv"))
        return replace(
            found,
            hardware=hardware,
            perplexity=perplexity or found.perplexity or published,
            residency=residency or found.residency,
        )

    @classmethod
    def measured(cls, model: str, measurements: Path | None = None, quantized: Path | None = None) -> Known:
        """Look for what was measured on this machine alone; there may be nothing."""
        folder = measurements or _measurements(model)
        machine = _if_there(folder / MACHINE)
        perplexity, sensitivity = (_if_there(folder / f"{table}.csv") for table in ("perplexity", "sensitivity"))
        residency = _if_there(folder / RESIDENCY)
        return cls(model, str(machine) if machine else None, quantized, perplexity, sensitivity, residency)


def usual_caching(model: str, measurements: Path | None = None) -> Caching:
    """Return the cache policy that found most on a model's calibration text; where none was tried, `lru`.

    Args:
        measurements: folder of residency-calibration.csv; results/moe/NAME by default.

    Raises:
        UserError: the table is damaged.
    """
    known = Known.measured(model, measurements)
    return Caching("lru") if known.residency is None else read_hit_rates(known.residency).usual()


def build_planner(
    shape: ModelShape,
    memory: Memory,
    known: Known,
    workload: Workload,
    bits: int,
    frequencies: NDArray[np.float64] | None = None,
    seed: int = 0,
) -> Planner:
    """Return a planner whose candidates quantise 0, 1, … all experts: the least sensitive first, else in random order.

    Args:
        memory: what the parts of the model take.
        frequencies: `[L, E]`, how often a token is routed to each expert; balanced if None.
        seed: of the random order, where sensitivities are not known.

    Raises:
        UserError: a table or profile is damaged or belongs to another model.
    """
    order, (increase, basis) = random_order(*shape.plan_shape, seed), _by_count(known, bits)
    if known.sensitivity and bits < FULL_BITS:
        costs = cost_table(read_csv(known.sensitivity, COLUMNS), shape.plan_shape)
        if bits in costs:
            order, increase, basis = cheapest_first(costs[bits]), summed_increase(costs), MODELLED
        elif increase is unknown_increase:
            basis = _lacks(known.sensitivity, bits, {*costs} - {FULL_BITS})
    rules = PaperRules(memory, shape.plan_shape, order, bits, frequencies)
    rates = read_hit_rates(known.residency) if known.residency else None
    if known.hardware is None:
        return Planner(rules, increase, basis=basis, hit_rates=rates)
    measured = read_hardware(known.hardware)
    hardware = scaled(measured, shape, memory.stored)
    other = None if hardware is measured else (measured.hidden, measured.intermediate)
    model = CostModel(hardware, shape, memory.expert, workload, frequencies, other)
    return Planner(rules, increase, model, basis, rates)


def _by_count(known: Known, bits: int) -> tuple[Increase, str]:
    """Return the increase by perplexities at numbers of quantised experts, and what it rests on."""
    if known.perplexity is None or bits == FULL_BITS:
        return unknown_increase, UNMEASURED
    table = read_csv(known.perplexity, PERPLEXITY_COLUMNS)
    if bits not in {*table["bits"]}:
        return unknown_increase, _lacks(known.perplexity, bits, {*table["bits"]})
    published = known.perplexity.is_relative_to(data_path("measurements"))
    with about(known.perplexity):
        increase = measured_increase(table, bits)
    return increase, f"{'published' if published else 'measured'}, interpolated over the number of quantised experts"


def _lacks(table: Path, bits: int, known: set[int]) -> str:
    return f"{table} has {', '.join(map(str, sorted(known))) or 'no'} bits, not {bits}"


def describe(model: str, planner: Planner, wish: Wish, proposal: Proposal, parts: Parts | None = None) -> str:
    """Return the proposal in words, after a table of the model's parts where these are given."""
    plan, memory = proposal.plan, planner.rules.memory
    precisions = ", ".join(
        f"{(plan.bits == bits).sum()} {_precision(bits, memory)}" for bits in np.unique(plan.bits).tolist()
    )
    quality = "not known" if np.isnan(proposal.increase) else f"{proposal.increase:+.2%}"
    if plan.quantized_experts or (planner.basis != UNMEASURED and planner.knows_quality):
        quality += f" ({planner.basis})"
    residents = plan.bytes_resident(memory.expert)
    buffer = proposal.bytes_fast - memory.non_expert - residents
    lines = [
        f"{model}{_on(planner)}, {amount(wish.budget_bytes)}, prefers {wish.preference}",
        *([] if parts is None else [f"  sizes       {parts.source}", *parts.lines()]),
        f"  experts     {precisions}; {plan.resident_experts} of {plan.bits.size} resident",
        f"  memory      {amount(proposal.bytes_fast)}: {amount(memory.non_expert)} outside the experts, "
        f"{amount(residents)} resident experts, {amount(buffer)} swap buffer",
        *_context(proposal),
        *([] if proposal.caching is None else [f"  residency   {proposal.caching}"]),
        f"  speed       {_speed(planner, proposal)}",
        f"  perplexity  {quality}",
        f"  {'why        ' if proposal.possible else 'impossible '} {proposal.why}",
    ]
    return "\n".join(lines)


def _context(proposal: Proposal) -> list[str]:
    if proposal.context_tokens is None:
        return []
    return [f"  context     keys and values of {proposal.context_tokens} tokens fit what is left"]


def _on(planner: Planner) -> str:
    return f" on {planner.costs.hardware.name}" if planner.costs else ""


def _precision(bits: int, memory: Memory) -> str:
    return f"as {memory.stored}" if memory.stored and bits == FULL_BITS else f"at {bits} bits"


def _speed(planner: Planner, proposal: Proposal) -> str:
    predicted, costs = proposal.prediction, planner.costs
    if costs is None or predicted is None:
        return "not known: measure a profile of this machine with `lumoe moe calibrate`"
    other = ""
    if costs.scaled_from is not None:
        timed, here = 3 * costs.scaled_from[0] * costs.scaled_from[1], costs.shape.expert_parameters
        other = f" from another model's profile (an expert of {number(timed)} weights there, {number(here)} here)"
    work = costs.workload
    return (
        f"{predicted.tokens_per_s:.4g} new tokens/s predicted{other} ({work.prompt_tokens} in, {work.new_tokens} out: "
        f"prefill {predicted.prefill_s:.4g} s, then {predicted.decode_s:.4g} s a token)"
    )


def _name(model: str) -> str:
    """Return a model's name; the dots of a shipped shape's are its own, not what an ending begins with."""
    if model.startswith(HUB):
        return re.split("[@:]", model.removeprefix(HUB))[0].rpartition("/")[2]
    path = Path(model)
    if path.is_dir():
        return path.resolve().name
    return path.stem if path.suffix in (".yaml", ".json", ".gguf") else path.name


def _measurements(model: str) -> Path:
    return Path("results/moe") / _name(model)


def _published_hardware(name: str) -> str | None:
    shape = data_path("shapes", f"{name}.yaml")
    return read_yaml(shape).get("hardware") if shape.is_file() else None


def _if_there(path: Path) -> Path | None:
    return path if path.is_file() else None
