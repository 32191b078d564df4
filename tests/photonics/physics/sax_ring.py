"""The add-drop ring assembled in `sax`, an independent circuit solver: two couplers and two half rings."""

from __future__ import annotations

import math

import jax
import numpy as np
import sax
import sax.models
from numpy.typing import NDArray

jax.config.update("jax_enable_x64", True)


def add_drop_circuit():
    """Return the circuit; ports: in, through, add, drop."""
    circuit, _ = sax.circuit(
        netlist={
            "instances": {"bus": "coupler", "tap": "coupler", "left": "half", "right": "half"},
            "connections": {
                "bus,out1": "right,in0",
                "right,out0": "tap,in1",
                "tap,out1": "left,in0",
                "left,out0": "bus,in1",
            },
            "ports": {"in": "bus,in0", "through": "bus,out0", "add": "tap,in0", "drop": "tap,out0"},
        },
        models={"coupler": sax.models.coupler_ideal, "half": sax.models.straight},
    )
    return circuit


def spectrum(circuit, ring, wavelength_m: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return through and drop power of `ring` (a lumoe Microring) at `wavelength_m`."""
    half_um = math.pi * ring.radius_m * 1e6
    half = {
        "length": half_um,
        "neff": ring.effective_index,
        "ng": ring.group_index,
        "wl0": ring.wavelength_m * 1e6,
        # sax: amplitude 10^(−loss·length/20); each half ring keeps √a.
        "loss_dB_cm": -10 * math.log10(ring.loss) / (half_um * 1e-4),
    }
    result = circuit(
        wl=wavelength_m * 1e6,
        bus={"coupling": 1 - ring.r1**2},
        tap={"coupling": 1 - ring.r2**2},
        left=half,
        right=half,
    )
    return np.abs(result["in", "through"]) ** 2, np.abs(result["in", "drop"]) ** 2
