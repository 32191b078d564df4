"""Throw what the OpenAPI document allows, and what it does not, at a server: no answer may be a 5xx.

    pip install schemathesis
    python benchmarks/serving_fuzz.py --model data/models/mini-mixtral

The context is short, so that no request can ask for much work; everything stays on the loopback address.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from served import Served, free_port, lumoe


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--examples", type=int, default=50, help="requests per operation and phase")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    program, port = Path(sys.executable).parent / "schemathesis", free_port()
    limits = ["--slots", "16", "--context", "24", "--queue", "128"]
    with Served(lumoe(options.model, port, 1, *limits), port, 1) as server:
        ask = {"model": options.model.resolve().name, "prompt": "x", "max_tokens": 1, "stream": True}
        server.answers("/v1/completions", ask)
        command = [
            str(program), "run", f"http://127.0.0.1:{port}/openapi.json", "--checks", "not_a_server_error",
            "--phases", "examples,coverage,fuzzing", "--max-examples", str(options.examples),
            "--seed", str(options.seed), "--suppress-health-check", "all", "--request-timeout", "60",
        ]  # fmt: skip
        with tempfile.TemporaryDirectory() as folder:  # where it keeps its notes
            status = subprocess.run(command, check=False, cwd=folder).returncode
        well, _ = server.call("GET", "/health")
    sys.exit(status or int(well != 200))


if __name__ == "__main__":
    main()
