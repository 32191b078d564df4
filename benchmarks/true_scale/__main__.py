"""Command line of the benchmark; `python -m benchmarks.true_scale run --help` lists what can be set."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "src"))  # a machine with a GPU need not have the package installed

import torch  # noqa: E402

from benchmarks.true_scale import machine, micro, peers, sweep  # noqa: E402
from benchmarks.true_scale.cases import SCHEMES, Case, cases, copies, left_out, plan_of  # noqa: E402
from benchmarks.true_scale.model import (  # noqa: E402
    BITS,
    RandomWeights,
    build,
    check_host,
    check_kernel,
    check_share,
    make_decoder,
    make_experts,
    read_model,
)
from benchmarks.true_scale.routing import shares_of  # noqa: E402
from benchmarks.true_scale.table import Table  # noqa: E402
from lumoe.errors import UserError  # noqa: E402
from lumoe.files import read_csv  # noqa: E402
from lumoe.moe.checkpoint.weights import Architecture  # noqa: E402
from lumoe.moe.engine.device import device_of  # noqa: E402
from lumoe.moe.planning.budget import parse_budget  # noqa: E402
from lumoe.moe.planning.plan import FULL_BITS  # noqa: E402

MORE = 3  # exit code: something is left for the next command
# Left free on the device for activations, keys and values, and recorded graphs.
HEADROOM = 3 << 30
# The memory sweep of arXiv 2407.14417.
BUDGETS = (26.28, 27.68, 30.50, 33.32, 36.13, 38.95, 41.76, 44.58, 47.40, 50.21, 53.03)


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    result = argparse.ArgumentParser(prog="python -m benchmarks.true_scale", description=__doc__)
    result.add_argument(
        "command",
        choices=("check", "build", "micro", "sweep", "peers", "run", "report"),
        help="check: is there room; build: fill --share; run: micro, sweep, then peers, as far as the time goes; "
        "report: what came out",
    )
    result.add_argument("--output", type=Path, default=ROOT / "data/measurements", help="folder of the tables")
    result.add_argument("--device", default="cuda", help="cuda, cuda:N or cpu")
    result.add_argument("--shape", type=Path, default=ROOT / "data/shapes/mixtral-8x7b.yaml", help="the model's widths")
    result.add_argument("--group-size", type=int, default=64, help="weights that share a scale at 4 bits")
    result.add_argument("--budget", nargs="+", default=[f"{b}GB" for b in BUDGETS], help="device memory, rising")
    result.add_argument("--count", nargs="+", type=int, help="quantised experts; quarters of all by default")
    result.add_argument("--routing", nargs="+", default=["uniform", "zipf:0.5"], help="uniform or zipf:EXPONENT")
    result.add_argument("--batch", nargs="+", type=int, default=[1, 4, 16], help="sequences that decode together")
    result.add_argument("--scheme", nargs="+", choices=SCHEMES, default=list(SCHEMES))
    result.add_argument("--prompt-tokens", type=int, default=16)
    result.add_argument("--new-tokens", type=int, default=16)
    result.add_argument("--repeats", type=int, default=3)
    result.add_argument("--seed", type=int, default=0)
    result.add_argument("--least-seconds", type=float, default=0.3, help="of each micro-benchmark")
    result.add_argument("--minutes", type=float, default=9.0, help="end within this; the next command goes on")
    result.add_argument("--host-memory", help="count with this much, where the system shows less than it has")
    result.add_argument("--share", type=Path, help="folder in a memory file system that keeps the experts")
    result.add_argument("--commit", help="what to write down as the commit; by default git is asked")
    return result


class Session:
    """One command: its options, what they say of the model, and the time that is left."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._end = time.monotonic() + 60 * options.minutes
        self.options = options
        self.device = device_of(options.device)
        self.architecture: Architecture = read_model(options.shape)
        total = self.architecture.experts
        self.counts = options.count if options.count is not None else [total * part // 4 for part in range(5)]
        whole = self.architecture.bytes_full
        self.budgets = sorted(parse_budget(text, whole) for text in options.budget)
        self.host_bytes = None if options.host_memory is None else parse_budget(options.host_memory)
        self.about = machine.describe(options.shape.stem, self.device, options.commit)
        self.weights = RandomWeights(self.architecture, options.seed)
        self.experts = make_experts(self.weights, options.group_size, self.device, options.share)
        self.copies = copies(self.counts, self.architecture.plan_shape, options.seed)
        self.bytes = sum(self.experts.nbytes(bits) for _, _, bits in self.copies)

    def left_s(self) -> float:
        """Return the seconds left to this command."""
        return self._end - time.monotonic()

    def check(self) -> None:
        """Say what is needed; raise UserError where it is not there."""
        say(
            f"{self.about['device']}: {len(self.copies)} copies of experts, {self.bytes / 1e9:.1f} GB of host memory; "
            f"int4 product within {check_kernel(self.device):.2g} of float32"
        )
        if self.options.share is None:
            check_host(self.bytes, self.host_bytes)
        else:
            check_share(self.options.share, self.bytes)

    def build(self) -> None:
        """Fill and pin all copies of experts."""
        build(self.experts, self.copies, say)

    def pending(self) -> list[Case]:
        """Return the cases of the sweep that can be measured here and that the table lacks."""
        a, options, table = self.architecture, self.options, self.sweep_table()
        sizes = {bits: self.experts.nbytes(bits) for bits in (BITS, FULL_BITS)}
        capacity = 1 << 62
        if self.device.type == "cuda":
            capacity = torch.cuda.get_device_properties(self.device).total_memory - HEADROOM
        found = []
        for case in cases(self.budgets, self.counts, options.routing, options.batch, options.scheme):
            if vars(case) in table:
                continue
            shares = shares_of(case.routing, a.plan_shape, a.num_experts_per_tok, options.seed)
            try:
                plan, budget = plan_of(case, a.plan_shape, sizes, 2 * a.non_expert_parameters, shares, options.seed)
                reason = left_out(case, plan, budget, capacity)
            except UserError as error:
                reason = str(error)
            if reason is None:
                found.append(case)
            elif options.command == "check":
                say(f"left out - {sweep.name_of(case)}: {reason}")
        return found

    def measure(self, pending: Sequence[Case]) -> int:
        """Measure the device and, as far as the time goes, `pending` cases; return how many are left."""
        options, folder = self.options, self.options.output
        decoder = make_decoder(self.weights, self.device)
        profiles = micro.read_profiles(folder)
        if profiles is None:
            profiles = micro.measure(decoder, self.experts, self.about, folder, options.least_seconds)
            say(f"micro-benchmarks: {folder / 'true_scale_micro.csv'}")
        rates = read_csv(folder / "true_scale_micro.csv", micro.COLUMNS).set_index("quantity")["value"]
        scale = sweep.Scale(options.prompt_tokens, options.new_tokens, options.repeats, options.seed)
        bench = sweep.Bench(decoder, self.experts, profiles, float(rates["device memory"]), self.about, scale)
        return bench.run(pending, self.sweep_table(), self.left_s, say)

    def sweep_table(self) -> Table:
        """Return the table of the sweep."""
        return Table(self.options.output / "true_scale.csv", sweep.COLUMNS, sweep.KEY)

    def peers_table(self) -> Table:
        """Return the table of the peers."""
        return Table(self.options.output / "true_scale_peers.csv", peers.COLUMNS, peers.KEY)

    def rows_of_peers(self) -> int:
        """Return how many rows the table of the peers lacks."""
        return len(peers.missing(self._peer_budgets(), self.options.batch[:1], self.peers_table()))

    def compare(self) -> int:
        """Time the peers; return how many rows are left."""
        options = self.options
        return peers.run(
            self.architecture, self.device, self._peer_budgets(), options.batch[:1], 1, self.about, self.peers_table(),
            self.host_bytes, self.left_s, say, options.prompt_tokens, options.new_tokens,
        )  # fmt: skip

    def _peer_budgets(self) -> list[int]:
        middle = self.budgets[len(self.budgets) // 2]
        return list(dict.fromkeys((self.budgets[0], middle, self.budgets[-1])))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return its exit code: 0, or MORE where the same command should run again."""
    options = parser().parse_args(arguments)
    if options.command == "report":
        from lumoe.moe.measurement.true_scale import describe, read_measurements, summarize

        print(describe(summarize(read_measurements(options.output / "true_scale.csv"))))
        return 0
    session = Session(options)
    command, left = options.command, 0
    pending = session.pending() if command in ("check", "sweep", "run") else []
    say(f"{len(pending)} cases of the sweep to measure")
    if command in ("check", "build", "micro") or pending:
        session.check()
        if command == "check":
            return 0
        session.build()
        if command != "build":
            left = session.measure(pending)
    elif command in ("peers", "run"):
        # A command of its own: the peers hold the weights in a layout of theirs, and the host has no room for both.
        left = session.compare()
    if command == "run" and pending and not left:
        left = session.rows_of_peers()
    if left:
        say(f"{left} left: run the same command again")
    return MORE if left else 0


def say(line: str) -> None:
    """Print at once: a command may be stopped at any moment."""
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as error:
        say(f"true_scale: {error}")
        sys.exit(2)
