"""The workflow as its users meet it: targets, mistakes and their exit codes; and what its rules rest on."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from itertools import takewhile
from pathlib import Path
from typing import Any

import pytest
from snakemake.io import expand

import lumoe
from lumoe.errors import UserError
from lumoe.pipeline.code_inputs import code
from lumoe.pipeline.graph import Graph, plan
from lumoe.pipeline.settings import validate

ROOT = Path(__file__).parents[2]
PACKAGE = Path(lumoe.__file__).parent
# Put before every Python of a run: each process leaves its command and the files of the package that it has loaded.
WITNESS = """
import atexit, json, os, sys, uuid

def leave():
    loaded = {name: module.__file__ for name, module in [*sys.modules.items()] if name.split(".")[0] == "lumoe"}
    if loaded:
        with open(os.path.join("LEFT", uuid.uuid4().hex), "w") as file:
            json.dump({"words": sys.argv, "loaded": loaded}, file)

atexit.register(leave)
"""


def snakemake(*arguments: str, folder: Path = ROOT) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "snakemake", "--cores", "2", *arguments]
    # The rules run the code in `folder`, with `lumoe` of this Python.
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    where = {**os.environ, "PATH": path, "PYTHONPATH": f"{folder / 'site'}:{folder / 'src'}"}
    return subprocess.run(command, cwd=folder, env=where, capture_output=True, text=True, check=False, timeout=1500)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """Return a copy of what the workflow reads, so that no lock or metadata of a real run is touched."""
    for name in ("workflow", "config", "data", "src", "profiles", "envs"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "Snakefile", tmp_path)
    return tmp_path


def planned(run: subprocess.CompletedProcess[str]) -> set[str]:
    """Return the rules in the table of jobs that a dry run prints."""
    assert run.returncode == 0, run.stderr
    rows = [line.split() for line in (run.stdout + run.stderr).splitlines()]
    if ["job", "count"] not in rows:
        return set()
    table = rows[rows.index(["job", "count"]) + 2 :]
    return {row[0] for row in takewhile(lambda row: row and row[0] != "total", table)}


def test_everything_is_planned_from_a_fresh_checkout(checkout: Path) -> None:
    rules = planned(snakemake("--dry-run", "--quiet=rules", folder=checkout))
    assert {"all", "judge_claims", "draw_claims", "print_claims"} <= rules
    assert not {"train", "train_model"} & rules, "the shipped model is not retrained unless asked for"


def test_one_table_runs_just_what_it_needs(checkout: Path) -> None:
    rules = planned(
        snakemake("--dry-run", "--quiet=rules", "results/photonics/pcnna/alexnet-ungrouped.csv", folder=checkout)
    )
    assert len(rules) <= 2, rules


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("sead=3", ["unknown key 'sead'", "'seed'"]),
        ("perplexity={counts: none}", ["'perplexity.counts'", "'none'"]),
        ("throughput={repeat: 3}", ["'throughput.repeat'", "'repeats'"]),
    ],
)
def test_a_wrong_setting_is_one_sentence_and_exit_code_2(checkout: Path, setting: str, words: list[str]) -> None:
    run = snakemake("--dry-run", "--config", setting, folder=checkout)
    complaint = [line for line in run.stderr.splitlines() if line.startswith("lumoe:")]
    assert run.returncode == 2
    assert len(complaint) == 1, run.stderr
    assert "Traceback" not in run.stderr
    assert all(word in complaint[0] for word in words), complaint


def test_mixtral_is_scored_and_timed_on_the_gpu_one_job_at_a_time(checkout: Path) -> None:
    run = snakemake("claims", "--dry-run", "--configfile", "config/mixtral-8x7b.yaml", folder=checkout)
    assert run.returncode == 0, run.stderr
    jobs = re.split(r"\n\[", run.stdout + run.stderr)
    runs_model = [job for job in jobs if re.search(r"lumoe moe (perplexity |sensitivity|calibrate|throughput)", job)]
    # Three corpora with three random orders and one by sensitivity, and one of each of the others.
    assert len(runs_model) == 3 * (3 + 1) + 3
    assert all("--device cuda" in job and "gpu=1" in job for job in runs_model)
    # The default profile has one GPU to give: more jobs at once would not fit into its memory.
    assert (checkout / "profiles/default/config.yaml").read_text(encoding="utf-8").count("  gpu: 1\n") == 1


def test_without_a_gpu_no_rule_asks_for_one(checkout: Path) -> None:
    run = snakemake("--dry-run", folder=checkout)
    assert "gpu=1" not in run.stdout + run.stderr
    assert (run.stdout + run.stderr).count("--device cpu") > 10


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Graph:
    """Return every job of the default configuration, and those that only other sources of the model need."""
    root = tmp_path_factory.mktemp("planned")
    for name in ("workflow", "config", "data", "src", "profiles"):
        (root / name).symlink_to(ROOT / name)
    shutil.copy(ROOT / "Snakefile", root)
    shipped = plan(root, [])
    return Graph((*shipped.jobs, *plan(root, ["train"]).jobs), shipped.settings)


def helper(name: str) -> Any:
    """Return what the workflow's shared file calls `name`."""
    text = (ROOT / "workflow/rules/common.smk").read_text(encoding="utf-8")
    names = {"config": validate({}).model_dump(), "expand": expand}
    exec(compile(text, "common.smk", "exec"), names)  # noqa: S102 - our own file
    return names[name]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"count": [0, 8]}, "--count 0 --count 8"),
        ({"prompt_tokens": 16, "share": (0.0, 0.5)}, "--prompt-tokens 16 --share 0.0 --share 0.5"),
        ({"model": "my models/a", "name": "it's"}, "--model 'my models/a' --name 'it'\"'\"'s'"),
        ({"table": None, "corpus": []}, ""),
    ],
)
def test_options_are_written_for_the_shell(options: dict[str, Any], words: str) -> None:
    assert helper("flags")(**options) == words


def test_a_model_folder_with_a_space_is_one_word(checkout: Path) -> None:
    folder = checkout / "my model"
    folder.mkdir()
    (folder / "config.json").write_text("{}", encoding="utf-8")
    run = snakemake(
        "results/claims.csv", "--dry-run", "--config", f"model={{source: 'folder:{folder}'}}", folder=checkout
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.count(f"--model '{folder}'") > 5


def command_of(words: list[str]) -> str:
    """Return the command that the words after `lumoe` begin with."""
    for count in (3, 2):
        try:
            code(" ".join(words[:count]))
        except UserError:
            continue
        return " ".join(words[:count])
    raise AssertionError(words)


def test_a_rule_lists_just_what_its_command_can_run(graph: Graph) -> None:
    jobs = [job for job in graph.jobs if job.command]
    assert len({job.rule for job in jobs}) > 55
    for job in jobs:
        listed = [name for name in job.inputs if name.startswith("src/")]
        assert listed == code(command_of(shlex.split(job.command)[1:])), job.rule
        assert all((ROOT / name).is_file() for name in listed)
        assert any(name.startswith("src/lumoe/cli/") for name in listed), job.rule


RUN_THE_MODEL = {
    "calibrate_machine", "compare_quantizers", "cross_check_perplexity", "measure_batching", "measure_sensitivity",
    "measure_throughput", "replay_residency", "replay_traces", "score_chosen", "score_random", "score_served",
}  # fmt: skip


@pytest.mark.parametrize(
    ("file", "rules"),
    [
        ("experts.cpp", {*RUN_THE_MODEL, "quantize_experts"}),
        ("simd_avx2.h", {*RUN_THE_MODEL, "quantize_experts"}),
        ("engine.py", RUN_THE_MODEL),
        ("readout.cpp", {"evaluate_accuracy", "join_accuracy", "fine_tune_digits"}),
        ("lumoe.mplstyle", None),
        ("cli/corpus.py", {"build_corpora"}),
    ],
)
def test_an_edit_of_one_file_concerns_just_the_rules_whose_command_imports_it(
    graph: Graph, file: str, rules: set[str] | None
) -> None:
    (path,) = PACKAGE.glob(file) if "/" in file else PACKAGE.rglob(file)
    name = f"src/lumoe/{path.relative_to(PACKAGE)}"
    drawn = {job.rule for job in graph.jobs if "lumoe plot" in job.command}
    assert len(drawn) > 20
    assert {job.rule for job in graph.jobs if name in job.inputs} == (drawn if rules is None else rules)


def test_after_an_edit_just_those_jobs_run_again(checkout: Path) -> None:
    built = [f"build/smoke/{name}" for name in ("figures/ring_spectrum.svg", "results/photonics/accuracy/tile-1.csv")]
    built += ["--configfile", "config/smoke.yaml"]
    run = snakemake(*built, folder=checkout)
    assert run.returncode == 0, run.stderr
    assert "evaluate_accuracy" in planned(snakemake(*built, "--dry-run", "--forceall", folder=checkout))
    assert planned(snakemake(*built, "--dry-run", folder=checkout)) == set()
    for file, rules in {
        "readout.cpp": {"evaluate_accuracy"},
        "style.py": {"draw_ring_spectrum"},
        "digits.py": {"train_digits", "evaluate_accuracy"},
        "experts.cpp": set(),
    }.items():
        (path,) = (checkout / "src/lumoe").rglob(file)
        before, times = path.read_text(encoding="utf-8"), path.stat()
        path.write_text(f"{before}\n", encoding="utf-8")
        assert planned(snakemake(*built, "--dry-run", folder=checkout)) == rules, file
        path.write_text(before, encoding="utf-8")
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def not_named(command: str, loaded: dict[str, str], source: Path) -> set[str]:
    """Return the loaded files that the closure of `command` lacks, but for modules that only register commands."""
    files = [Path(file) for name, file in loaded.items() if not f"{name}.".startswith("lumoe.cli.")]
    return {str(file.relative_to(source)) for file in files if file.is_relative_to(source / "src")} - {*code(command)}


@pytest.mark.pipeline
@pytest.mark.timeout(1800)
def test_every_process_of_a_whole_run_loads_only_what_its_rule_lists(checkout: Path) -> None:
    left = checkout / "left"
    for folder in (checkout / "site", left):
        folder.mkdir()
    (checkout / "site/sitecustomize.py").write_text(WITNESS.replace("LEFT", str(left)), encoding="utf-8")
    done = snakemake("--configfile", "config/smoke.yaml", folder=checkout)
    assert done.returncode == 0, done.stderr[-4000:]

    seen: dict[str, set[str]] = {}
    for path in left.iterdir():
        record = json.loads(path.read_text(encoding="utf-8"))
        if Path(record["words"][0]).name == "lumoe":
            command = command_of(record["words"][1:])
            seen.setdefault(command, set()).update(not_named(command, record["loaded"], checkout))
    # The run itself says which commands there were; the last one is that of `onsuccess`.
    shells = [line for line in done.stderr.splitlines() if line.startswith("Shell command: lumoe ")]
    ran = {command_of(shlex.split(line)[3:]) for line in shells}
    assert len(ran) > 50
    assert {*seen} == ran | {"provenance record"}
    assert {command: lacking for command, lacking in seen.items() if lacking} == {}


@pytest.mark.parametrize("command", ["model train", "model fetch", "plot moe true-scale"])
def test_what_no_smoke_run_reaches_imports_only_what_it_names(command: str) -> None:
    """A model trained anew or from the hub, measurements of a GPU: the modules are imported, nothing is called."""
    modules = [Path(name).relative_to("src").with_suffix("") for name in code(command) if name.endswith(".py")]
    names = [".".join(path.parts).removesuffix(".__init__") for path in modules]
    program = (
        "import importlib, json, sys\n"
        f"for name in {names!r}: importlib.import_module(name)\n"
        "print(json.dumps({name: m.__file__ for name, m in sys.modules.items() if name.split('.')[0] == 'lumoe'}))"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=300)
    loaded = json.loads(run.stdout)
    assert {*names} <= {*loaded}
    assert not_named(command, loaded, ROOT) == set()
