"""What others published, held against what this package computes: a difference is shown, never hidden.

Eyeriss' layers against its own totals and against traced counts; networks against their papers; PCNNA's rings; the
device sets, put together as Albireo, against that accelerator's published powers and areas.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from lumoe.errors import UserError
from lumoe.files import read_csv, read_yaml
from lumoe.photonics.accelerators import pcnna
from lumoe.photonics.devices import load_devices
from lumoe.photonics.network.load import load_network
from lumoe.photonics.network.shapes import convolution_shapes
from lumoe.photonics.studies.baselines import EYERISS_NETWORKS, LAYER_COLUMNS, PLATFORM_COLUMNS

COLUMNS = ("check", "item", "quantity", "unit", "published", "here", "difference", "source", "confidence")
PUBLISHED_COLUMNS = ("check", "item", "quantity", "unit", "published", "source", "confidence")
ALBIREO_KEYS = ("groups", "units", "weights", "columns", "inputs", "rings_per_crossing", "clock_hz")
# The traced forms of the networks that Eyeriss was run on.
COUNTED_NETWORKS = ("alexnet", "vgg16")


def crosscheck(published: str | Path, eyeriss: str | Path, platforms: str | Path, albireo: str | Path) -> pd.DataFrame:
    """Return one row per published number: what is computed here, and the relative difference.

    Raises:
        UserError: a file is ill-formed, or a published quantity is one that nothing here computes.
    """
    given = read_csv(published, PUBLISHED_COLUMNS)
    parts = _albireo_parts(albireo)
    compute: Mapping[str, Callable[[str], dict[str, float]]] = {
        "network": _network_counts,
        "pcnna": _rings,
        "albireo": lambda name: _albireo(name, parts),
    }
    here = []
    for row in given.to_dict("records"):
        found = compute[row["check"]](row["item"]) if row["check"] in compute else {}
        if row["quantity"] not in found:
            raise UserError(f"{published}: nothing computes '{row['check']}, {row['item']}, {row['quantity']}'")
        here.append(found[row["quantity"]])
    layers = read_csv(eyeriss, (*LAYER_COLUMNS, "gmac"))
    totals = read_csv(platforms, (*PLATFORM_COLUMNS, "latency_ms_per_batch"))
    table = pd.concat([given.assign(here=here), pd.DataFrame(_eyeriss(layers, totals))], ignore_index=True)
    table["difference"] = table["here"] / table["published"] - 1
    return table


def _network_counts(name: str) -> dict[str, float]:
    network = load_network(name)
    return {
        "conv_macs": float(sum(layer.macs for layer in network.convolutions())),
        "weights": float(sum(layer.weights for layer in network.layers)),
    }


def _rings(name: str) -> dict[str, float]:
    shapes = convolution_shapes([x for x in load_network("alexnet-ungrouped").convolutions() if x.name == name])
    return {
        "rings": pcnna.rings(shapes).item(),
        "rings_unfiltered": pcnna.rings(shapes, filtered=False).item(),
    }


def _albireo_parts(path: str | Path) -> dict[str, float]:
    document = read_yaml(path)
    missing = [key for key in ALBIREO_KEYS if not isinstance(document, dict) or key not in document]
    if missing:
        raise UserError(f"{path}: '{missing[0]}' is missing")
    return {key: float(document[key]) for key in ALBIREO_KEYS}


def _albireo(device_set: str, parts: Mapping[str, float]) -> dict[str, float]:
    """Power in W and area in mm² of the parts of Albireo, made of a device set of this package."""
    values = load_devices(device_set).values()
    weights = parts["groups"] * parts["units"] * parts["weights"]
    crossings = weights * parts["columns"]
    driven = weights + parts["inputs"] * parts["units"]
    counts = {
        "rings": crossings * parts["rings_per_crossing"], "modulators": driven, "laser": crossings, "dacs": driven,
        "amplifiers": parts["groups"] * parts["columns"],
    }  # fmt: skip
    power = {
        "rings": values["ring_power"], "modulators": values["modulator_power"], "laser": values["laser_channel_power"],
        "dacs": values["dac_energy"] * parts["clock_hz"], "amplifiers": values["tia_energy"] * parts["clock_hz"],
    }  # fmt: skip
    area = {"rings": "ring", "modulators": "modulator", "laser": "laser", "dacs": "dac", "amplifiers": "tia"}
    watts = {name: count * power[name] for name, count in counts.items()}
    return watts | {f"{name}_area": count * values[f"{area[name]}_area"] * 1e6 for name, count in counts.items()}


def _eyeriss(layers: pd.DataFrame, totals: pd.DataFrame) -> Iterator[dict[str, Any]]:
    for name in COUNTED_NETWORKS:
        published = EYERISS_NETWORKS[name]
        rows = layers[layers["network"] == published]
        platform = totals[(totals["platform"] == "Eyeriss") & (totals["network"] == f"{published} conv")].iloc[0]
        macs = {layer.name: layer.macs for layer in load_network(name).convolutions()}
        for row in rows.to_dict("records"):
            counted = macs[row["layer"]] * row["batch"]
            yield _row("eyeriss-layer", f"{name} {row['layer']}", "batch_macs", "1", row["gmac"] * 1e9, counted, row)
        batch, seconds = rows["batch"].iloc[0], rows["total_ms"].sum() * 1e-3
        rate = 2e-9 * sum(macs.values()) * batch / seconds
        power = (rows["power_mw"] * rows["total_ms"]).sum() / rows["total_ms"].sum() * 1e-3
        latency = platform["latency_ms_per_batch"] * 1e-3
        found = {"latency": ("s", latency, seconds), "throughput": ("GOP/s", platform["gop_per_s"], rate)}
        for quantity, (unit, said, here) in (found | {"power": ("W", platform["power_w"], power)}).items():
            yield _row("eyeriss-total", name, quantity, unit, said, here, platform)


def _row(check: str, item: str, quantity: str, unit: str, published: float, here: float, record: Any) -> dict[str, Any]:
    origin = {"source": record["source"], "confidence": record["confidence"]}
    return dict(zip(COLUMNS[:6], (check, item, quantity, unit, published, here), strict=True)) | origin
