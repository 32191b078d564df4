"""`lumoe photonics physics`: rings, detectors, links and weight banks as tables."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lumoe.cli.options import DevicesOption, SeedOption, use_exact_threads

app = typer.Typer(no_args_is_help=True)


@app.command("physics")
def tabulate_physics(
    spectrum: Annotated[Path, typer.Option(help="through, drop and weight of the ring")],
    bits: Annotated[Path, typer.Option(help="effective bits over power and rate")],
    sizes: Annotated[Path, typer.Option(help="largest N = M of the link")],
    weights: Annotated[Path, typer.Option(help="weight error over channel spacing")],
    devices: DevicesOption = "moderate",
    seed: SeedOption = 0,
) -> None:
    """Tabulate ring, detector, link and weight bank of a device set.

    Example: `lumoe photonics physics --spectrum ring.csv --bits bits.csv --sizes sizes.csv --weights weights.csv`
    """
    from lumoe.files import write_csv
    from lumoe.photonics.physics import tables
    from lumoe.photonics.physics.parameters import load_physics

    use_exact_threads(1)
    physics = load_physics(devices)
    write_csv(spectrum, tables.ring_spectrum(physics))
    write_csv(bits, tables.detector_bits(physics))
    write_csv(sizes, tables.link_sizes(physics))
    write_csv(weights, tables.weight_errors(physics, seed=seed))
