"""The planner of an opened model: what `lumoe serve` and `lumoe moe generate` plan with, as `lumoe moe plan` does."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

from lumoe.errors import UserError
from lumoe.moe.engine.open import OpenedModel
from lumoe.moe.planning.caching import Caching
from lumoe.moe.planning.cost import CostModel, Workload
from lumoe.moe.planning.hardware import read_hardware
from lumoe.moe.planning.inputs import MODELLED, Known, build_planner
from lumoe.moe.planning.plan import FULL_BITS
from lumoe.moe.planning.planner import Planner
from lumoe.moe.planning.scaling import is_of
from lumoe.moe.quantization.folder import read_frequencies

log = logging.getLogger(__name__)


def planner_for(
    model: OpenedModel,
    folder: Path,
    quantized: Path | None = None,
    measurements: Path | None = None,
    seed: int = 0,
) -> Planner:
    """Return a planner from what was measured here; the paper's rules fill what is not known.

    Args:
        folder: of the model.
        quantized: folder of its quantised experts, whose calibration counted how often each is used.
        measurements: folder of machine.json, perplexity.csv and sensitivity.csv; results/moe/NAME by default.
        seed: of the order in which experts give up precision, where sensitivities are not known.

    Raises:
        UserError: there is no precision but 16 bits to plan with, or the measurements asked for are not of this model.
    """
    lesser = [bits for bits in model.memory.expert if bits < FULL_BITS]
    if not lesser:
        device = model.config.device
        raise UserError(f"{device}: give --quantized FOLDER, experts at 4 bits from `lumoe moe quantize`")
    bits, shape = min(lesser), model.decoder.architecture
    known = Known.measured(str(folder), measurements, quantized)
    frequencies = read_frequencies(quantized, shape.plan_shape) if quantized else None
    if known.hardware is not None:
        try:
            hardware = read_hardware(known.hardware)
            CostModel(hardware, shape, model.memory.expert).check((bits, FULL_BITS))
            if not is_of(hardware, shape, model.memory.stored):
                raise UserError(f"{known.hardware}: the profile was measured on another model")
        except UserError as error:
            if measurements is not None:
                raise
            log.warning("%s; speeds are not predicted", error)
            known = replace(known, hardware=None)
    planner = build_planner(shape, model.memory, known, Workload(), bits, frequencies, seed)
    if planner.hit_rates is not None:
        # Plans are not to count on the hits of another policy than the engine's.
        planner = replace(planner, hit_rates=planner.hit_rates.under(Caching.of(model.config.policy)))
    log.info(
        "plans with %s experts by %s, %s first; quality: %s",
        f"{bits}-bit",
        f"the speeds that {known.hardware} predicts" if planner.costs else "the paper's rules",
        f"those of least cost in {known.sensitivity}" if planner.basis == MODELLED else f"random ones (seed {seed})",
        planner.basis,
    )
    return planner
