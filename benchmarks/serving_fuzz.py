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

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "serve"))
from conftest import serving

from lumoe.moe.serve.app import Limits
from lumoe.moe.serve.run import Setup


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--examples", type=int, default=50, help="requests per operation and phase")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    program = Path(sys.executable).parent / "schemathesis"
    with serving(Setup(options.model, budget="100%"), Limits(slots=16, context=24, queue=128)) as running:
        command = [
            str(program), "run", f"{running.url}/openapi.json", "--checks", "not_a_server_error",
            "--phases", "examples,coverage,fuzzing", "--max-examples", str(options.examples),
            "--seed", str(options.seed), "--suppress-health-check", "all", "--request-timeout", "60",
        ]  # fmt: skip
        with tempfile.TemporaryDirectory() as folder:  # where it keeps its notes
            status = subprocess.run(command, check=False, cwd=folder).returncode
    sys.exit(status)


if __name__ == "__main__":
    main()
