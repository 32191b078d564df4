"""A whole model in less memory than it takes: this engine and llama.cpp in memory control groups of the same limit.

    python -m venv build/llama && build/llama/bin/pip install xllamacpp
    python benchmarks/under_limit.py --folder build/under-limit --llama-python build/llama/bin/python \\
        --shape olmoe-1b-7b --output results/benchmarks/under_limit.csv

Both open one GGUF file (`random_gguf.py`), so that every weight has the same bits. The limit counts all that a process
takes, its pages of the file among them, so a contender that lets the system keep the file gains nothing by it. It is a
share of the file's bytes. Tokens after the prompt are drawn evenly from the vocabulary: the most likely ones of a
random model would repeat themselves. Contenders are started one after another with an empty page cache, then take turns
at prompts that are new each time (`rotating`); the first prompt after the start is `cold`, and one asked for a second
time `warm`.

Needs Linux and the right to make control groups (root). Time to the first token is apart from decoding. `bytes_a_token`
is what a process had read from the disk, by the system's count; the peak is the group's.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import psutil
import torch
from lines import Process
from random_gguf import SHAPES, VOCABULARY, write_model

from lumoe.files import write_csv
from lumoe.memory_group import MOUNT

# Of the limit, what this engine leaves for activations, keys and values, and what Python allocates.
KEPT = 200 << 20
CONTEXT = 512
ROUTING = {"uniform": 0.0, "skewed": 0.5}
LLAMA = {"mmap": "llama.cpp, mmap", "direct": "llama.cpp, direct reads"}
COLUMNS = (
    "shape", "routing", "share", "limit_mb", "contender", "state", "first_token_ms", "decode_ms", "decode_ms_min",
    "decode_ms_max", "times_of_llama", "mb_a_token", "hit_rate", "floor_ms", "peak_mb", "start_s", "rounds", "threads",
    "prompt_tokens", "new_tokens", "disk_gb_per_s", "device", "versions", "basis",
)  # fmt: skip


class Group:
    """A memory control group with a limit, of either version."""

    def __init__(self, name: str, limit: int) -> None:
        second = (MOUNT / "cgroup.controllers").is_file()
        self.folder = (MOUNT if second else MOUNT / "memory") / name
        self.folder.mkdir(exist_ok=True)
        if second:
            (MOUNT / "cgroup.subtree_control").write_text("+memory")
        (self.folder / ("memory.max" if second else "memory.limit_in_bytes")).write_text(str(limit))
        self._peak = self.folder / ("memory.peak" if second else "memory.max_usage_in_bytes")

    def command(self, words: Sequence[object]) -> list[object]:
        """Return a command that runs `words` in this group."""
        return ["sh", "-c", f'echo $$ > "{self.folder}/cgroup.procs"; exec "$@"', "sh", *words]

    @property
    def peak_bytes(self) -> int:
        """The most that the group has taken."""
        return int(self._peak.read_text())

    def remove(self) -> None:
        """Remove the group, whose processes have ended."""
        for _ in range(50):
            with suppress(OSError):
                self.folder.rmdir()
                return
            time.sleep(0.1)


@dataclass(frozen=True)
class Timing:
    """One prompt and what followed it; `hit_rate` is NaN where the contender does not count."""

    first_ms: float
    decode_ms: float
    bytes_read: int
    hit_rate: float


class Contender(Process):
    """A process in a group of its own."""

    def __init__(self, name: str, words: Sequence[object], group: Group) -> None:
        self.name, self.group = name, group
        began = time.perf_counter()
        super().__init__(group.command(words), subprocess.DEVNULL)
        self.start_s = time.perf_counter() - began

    def time(self, ids: list[int], steps: int) -> Timing:
        """Run a prompt and `steps` tokens after it."""
        before = self._bytes_read()
        answer = json.loads(self.ask(json.dumps(self.body(ids, steps))))
        return self.timing(answer, self._bytes_read() - before)

    def body(self, ids: list[int], steps: int) -> dict[str, object]:
        """Return what the process is told."""
        return {"ids": ids, "steps": steps}

    def timing(self, answer: dict[str, float], read: int) -> Timing:
        """Return what its answer says."""
        return Timing(answer["first_ms"], answer["decode_ms"], read, answer["hit_rate"])

    def close(self) -> None:
        super().close()
        self.group.remove()

    def _bytes_read(self) -> int:
        return int(psutil.Process(self._process.pid).io_counters().read_bytes)


class Llama(Contender):
    """llama.cpp, which times itself."""

    def body(self, ids: list[int], steps: int) -> dict[str, object]:
        drawn = {"temperature": 1e6, "samplers": ["temperature"], "seed": ids[0]}
        return {"prompt": ids, "n_predict": steps + 1, "ignore_eos": True, **drawn}

    def timing(self, answer: dict[str, object], read: int) -> Timing:  # type: ignore[override]
        timings = answer["timings"]
        assert isinstance(timings, dict)
        return Timing(timings["prompt_ms"], timings["predicted_ms"] / timings["predicted_n"], read, float("nan"))


def answer(options: argparse.Namespace) -> None:
    """Be a contender: this engine under a budget that the limit leaves room for."""
    import lumoe
    from lumoe.moe.engine.engine import Engine
    from lumoe.moe.engine.open import EngineConfig, open_model
    from lumoe.moe.planning.placement import place
    from lumoe.moe.planning.plan import Plan

    torch.set_num_threads(options.threads)
    model = open_model(options.model, config=EngineConfig(**json.loads(options.settings)))
    taken = psutil.Process().memory_info().rss - model.decoder.nbytes
    budget = options.limit - taken - KEPT
    bits = Plan.uniform(*model.plan_shape, resident=False).bits
    engine = Engine(model, place(bits, budget, model.memory), budget)
    print("ready", lumoe.__version__, flush=True)
    for line in sys.stdin:
        task = json.loads(line)
        cache, before = engine.cache(1, CONTEXT), engine.metrics()
        began = time.perf_counter()
        engine.step(torch.tensor([task["ids"]]), cache)
        first = time.perf_counter()
        draw = torch.Generator().manual_seed(task["ids"][0])
        for token in torch.randint(3, VOCABULARY, (task["steps"],), generator=draw):
            engine.step(token.view(1, 1), cache)
        end, after = time.perf_counter(), engine.metrics()
        hits, misses = (after[name] - before[name] for name in ("hits", "misses"))
        found = {"first_ms": 1e3 * (first - began), "decode_ms": 1e3 * (end - first) / task["steps"]}
        print(json.dumps(found | {"hit_rate": hits / (hits + misses)}), flush=True)


def drop_cache(path: Path) -> None:
    """Let the system forget what it keeps of a file."""
    file = os.open(path, os.O_RDONLY)
    os.fsync(file)
    os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(file)


def disk_gb_per_s(path: Path, nbytes: int = 1 << 30) -> float:
    """Return the rate of one sequential read past the page cache."""
    piece = 8 << 20
    file, total = os.open(path, os.O_RDONLY | os.O_DIRECT), 0
    memory = torch.empty(piece + 4096, dtype=torch.uint8)
    start = -memory.data_ptr() % 4096
    view = memoryview(memory.numpy())[start : start + piece]
    began = time.perf_counter()
    while total < nbytes and (read := os.preadv(file, [view], total)):
        total += read
    os.close(file)
    return total / (time.perf_counter() - began) / 1e9


@contextmanager
def running(options: argparse.Namespace, model: Path, limit: int) -> Iterator[list[Contender]]:
    """Start the contenders, one after another, each with an empty page cache; those that cannot are left out."""
    ours: list[object] = [sys.executable, __file__, "--run", "--model", model, "--threads", options.threads]
    theirs: list[object] = [options.llama_python, Path(__file__).with_name("llama_lines.py"), model, CONTEXT]
    found: list[Contender] = []
    kinds: list[tuple[type[Contender], str, list[object]]] = [
        (Llama, LLAMA[mode], [*theirs, options.threads, mode]) for mode in options.llama
    ]
    for settings in options.settings_of:
        name, _, text = settings.partition("=")
        words = [*ours, "--limit", limit, "--settings", text or "{}"]
        kinds.append((Contender, f"lumoe, {name}", words))
    try:
        for number, (kind, name, words) in enumerate(kinds):
            drop_cache(model)
            contender = kind(name, words, Group(f"lumoe-{os.getpid()}-{number}", limit))
            if contender.greeting.startswith("ready"):
                found.append(contender)
            else:
                print(f"{name}: does not start under {limit / 1e6:.0f} MB", file=sys.stderr, flush=True)
                contender.close()
        yield found
    finally:
        for contender in found:
            contender.close()


def compare(options: argparse.Namespace) -> None:
    """Write COLUMNS, after each limit what there is."""
    from kernels import read_gb_per_s

    from lumoe.moe.measurement.profile import describe_device

    device, rows, memory = describe_device().rsplit(",", 1)[0], [], torch.zeros(100 << 20)
    for name in options.shape:
        for routing in options.routing:
            shape, model = SHAPES[name], options.folder / f"{name}-{routing}.gguf"
            write_model(model, shape, ROUTING[routing])
            for share in options.share:
                limit = model.stat().st_size * share // 100
                rates = [(disk_gb_per_s(model), read_gb_per_s(memory))]
                with running(options, model, limit) as contenders:
                    found = take_turns(contenders, options)
                    rates.append((disk_gb_per_s(model), read_gb_per_s(memory)))
                    disk, ram = (statistics.mean(pair) for pair in zip(*rates, strict=True))
                    versions = ", ".join(dict.fromkeys(c.name.split(",")[0] + c.greeting[5:] for c in contenders))
                    about = {
                        "shape": name, "routing": routing, "share": share, "limit_mb": limit / 1e6,
                        "threads": options.threads, "prompt_tokens": options.prompt, "new_tokens": options.steps,
                        "disk_gb_per_s": disk, "device": device, "versions": versions, "basis": "measured",
                    }  # fmt: skip
                    for contender in contenders:
                        for state in ("cold", "warm", "rotating"):
                            row = summary(contender, found[contender.name, state], options)
                            peer = found.get((LLAMA["mmap"], state))
                            if peer:
                                row["times_of_llama"] = row["decode_ms"] / _median(peer, "decode_ms")
                            row["floor_ms"] = shape.bytes_of_a_token / ram / 1e6 + row["mb_a_token"] / disk
                            rows.append(about | {"state": state} | row)
                            print(described(rows[-1]), flush=True)
                # A contender that reads its model over and over may be stopped: what is measured stays.
                write_csv(options.output, pd.DataFrame(rows, columns=list(COLUMNS)), COLUMNS)


def take_turns(contenders: Sequence[Contender], options: argparse.Namespace) -> dict[tuple[str, str], list[Timing]]:
    """Return (contender, state) -> timings."""
    draw = torch.Generator().manual_seed(0)
    found: dict[tuple[str, str], list[Timing]] = {}
    for repeat in range(options.repeats + 1):
        ids = torch.randint(3, VOCABULARY, (options.prompt,), generator=draw).tolist()
        for contender in contenders:
            found.setdefault((contender.name, "rotating" if repeat else "cold"), []).append(
                contender.time(ids, options.steps)
            )
            found.setdefault((contender.name, "warm"), []).append(contender.time(ids, options.steps))
    return found


def summary(contender: Contender, timings: Sequence[Timing], options: argparse.Namespace) -> dict[str, object]:
    """Return what a contender's timings come to."""
    decoding = [timing.decode_ms for timing in timings]
    return {
        "contender": contender.name,
        "first_token_ms": _median(timings, "first_ms"),
        "decode_ms": _median(timings, "decode_ms"),
        "decode_ms_min": min(decoding),
        "decode_ms_max": max(decoding),
        "mb_a_token": _median(timings, "bytes_read") / (options.steps + 1) / 1e6,
        "hit_rate": _median(timings, "hit_rate"),
        "peak_mb": contender.group.peak_bytes / 1e6,
        "start_s": contender.start_s,
        "rounds": len(timings),
    }


def described(row: dict[str, object]) -> str:
    """Return a row as a line."""
    return (
        f"{row['shape']:14} {row['routing']:8} {row['share']:4} %  {row['contender']:26} {row['state']:8} "
        f"first {row['first_token_ms']:8.0f} ms, then {row['decode_ms']:7.1f} ms a token, "
        f"{row.get('times_of_llama', float('nan')):5.2f} of llama.cpp, {row['mb_a_token']:6.1f} MB read a token, "
        f"hits {row['hit_rate']:.2f}, floor {row['floor_ms']:.0f} ms, "
        f"peak {row['peak_mb']:.0f} of {row['limit_mb']:.0f} MB"
    )


def _median(timings: Sequence[Timing], name: str) -> float:
    return float(statistics.median(getattr(timing, name) for timing in timings))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="where the files are made, of the size of the models")
    parser.add_argument("--llama-python", type=Path, help="Python that has xllamacpp")
    parser.add_argument("--output", type=Path, help="the table")
    parser.add_argument("--shape", nargs="*", choices=list(SHAPES), default=["olmoe-1b-7b"])
    parser.add_argument("--routing", nargs="*", choices=list(ROUTING), default=list(ROUTING))
    parser.add_argument("--share", type=int, nargs="*", default=[100, 50, 25], help="limits in %% of the file")
    parser.add_argument("--llama", nargs="*", choices=list(LLAMA), default=list(LLAMA), help="how it reads the file")
    parser.add_argument(
        "--settings-of", nargs="*", metavar="NAME=JSON", default=["as it comes"],
        help="this engine's contenders, with fields of EngineConfig",
    )  # fmt: skip
    parser.add_argument("--prompt", type=int, default=16, help="tokens of a prompt")
    parser.add_argument("--steps", type=int, default=32, help="tokens after it")
    parser.add_argument("--repeats", type=int, default=5, help="rounds of new prompts")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--run", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--model", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--limit", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--settings", default="{}", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        answer(options)
        return
    if not (options.folder and options.llama_python and options.output):
        parser.error("give --folder, --llama-python and --output")
    compare(options)


if __name__ == "__main__":
    main()
