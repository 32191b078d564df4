"""Snakemake on a real Slurm of one node: jobs side by side, a failing job, a cancelled job, an interrupted run.

Run with LUMOE_SLURM=1. Skipped, with the reason, without it and where Slurm's packages or the right to start it
are missing.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
SCRIPT = HERE / "one_machine_slurm.sh"
ALLOWED = "LUMOE_SLURM"
CANNOT = 3
POLL_S = 0.25
# One machine without accounting: the partition is ours, job states come from squeue, polling starts at once.
LAB = [
    "--default-resources=slurm_partition=main",
    "--slurm-status-command=squeue",
    "--slurm-init-seconds-before-status-checks=2",
    "--slurm-no-account",
]


@pytest.fixture(scope="session")
def slurm() -> Iterator[None]:
    """Start Slurm, one test session at a time, and stop it afterwards."""
    if not os.environ.get(ALLOWED):
        pytest.skip(f"starts daemons and writes /etc/slurm/slurm.conf: set {ALLOWED}=1 to allow it")
    with Path("/tmp/lumoe-slurm.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        start = subprocess.run([SCRIPT, "start"], capture_output=True, text=True, check=False)
        if start.returncode == CANNOT:
            pytest.skip(start.stderr.strip())
        assert start.returncode == 0, start.stderr
        try:
            yield
        finally:
            if "already up" not in start.stdout:
                subprocess.run([SCRIPT, "stop"], check=True, timeout=120)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a working folder with the small workflow."""
    shutil.copy(HERE / "Snakefile", tmp_path)
    shutil.copytree(ROOT / "profiles", tmp_path / "profiles")
    return tmp_path


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "snakemake", "--workflow-profile", "profiles/slurm", *arguments, *LAB]


def snakemake(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*arguments), cwd=folder, capture_output=True, text=True, check=False, timeout=240)


def queue(*states: str) -> list[str]:
    listing = ["squeue", "--noheader", "--format=%i", f"--states={','.join(states)}"]
    return subprocess.run(listing, capture_output=True, text=True, check=True).stdout.split()


def started(folder: Path, target: str) -> subprocess.Popen[str]:
    """Start snakemake and return when its one job runs and has begun to write."""
    # A shell's background job ignores SIGINT, and would hand that down to a run that is to be interrupted.
    inherited = signal.signal(signal.SIGINT, signal.default_int_handler)
    run = subprocess.Popen(
        command(target), cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    signal.signal(signal.SIGINT, inherited)
    deadline = time.monotonic() + 60
    while not (queue("RUNNING") and (folder / target).exists()):
        assert run.poll() is None, run.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(POLL_S)
    return run


@pytest.mark.usefixtures("slurm")
def test_two_jobs_run_side_by_side(folder: Path) -> None:
    run = snakemake(folder, "meet_all")
    assert run.returncode == 0, run.stderr
    jobs = {(folder / f"met/{name}.txt").read_text().strip() for name in ("left", "right")}
    assert len(jobs) == 2, "each ran as a Slurm job of its own"
    assert all(job.isdigit() for job in jobs)


@pytest.mark.usefixtures("slurm")
def test_a_failing_job_is_named_leaves_nothing_half_written_and_stops_nothing_else(folder: Path) -> None:
    run = snakemake(folder, "fail_and_meet")
    assert run.returncode == 1
    assert "fail_unless_mended" in run.stderr
    assert "lumoe: the input is broken" in run.stderr, "the job's own last words are shown"
    assert not (folder / "mended.txt").exists()
    assert (folder / "met/left.txt").is_file()
    before = (folder / "met/left.txt").stat().st_mtime_ns

    (folder / "mend").touch()
    assert snakemake(folder, "fail_and_meet").returncode == 0
    assert (folder / "mended.txt").is_file()
    assert (folder / "met/left.txt").stat().st_mtime_ns == before, "what was done is not done again"


@pytest.mark.usefixtures("slurm")
def test_a_cancelled_job_ends_the_run_and_a_rerun_finishes_it(folder: Path) -> None:
    run = started(folder, "released.txt")
    (job,) = queue("RUNNING")
    subprocess.run(["scancel", job], check=True)
    output, _ = run.communicate(timeout=120)
    assert run.returncode == 1, output
    assert "wait_unless_released" in output
    assert "CANCELLED" in output

    (folder / "release").touch()
    again = snakemake(folder, "released.txt")
    assert again.returncode == 0, again.stderr
    assert (folder / "released.txt").read_text() == "half\n"


@pytest.mark.usefixtures("slurm")
def test_an_interrupted_run_takes_its_jobs_along(folder: Path) -> None:
    run = started(folder, "released.txt")
    os.killpg(run.pid, signal.SIGINT)
    output, _ = run.communicate(timeout=120)
    assert run.returncode != 0, output
    deadline = time.monotonic() + 60
    while queue("RUNNING", "PENDING", "COMPLETING"):
        assert time.monotonic() < deadline
        time.sleep(POLL_S)


@pytest.mark.pipeline
@pytest.mark.timeout(3600)
@pytest.mark.usefixtures("slurm")
def test_the_smoke_pipeline_runs_as_slurm_jobs(tmp_path: Path) -> None:
    for name in ("workflow", "config", "data", "src", "profiles", "envs"):
        shutil.copytree(ROOT / name, tmp_path / name)
    shutil.copy(ROOT / "Snakefile", tmp_path)
    # The jobs run the copied code, whatever is edited in the checkout meanwhile.
    where = {**os.environ, "PYTHONPATH": str(tmp_path / "src")}
    run = command("--configfile", "config/smoke.yaml")
    done = subprocess.run(run, cwd=tmp_path, env=where, capture_output=True, text=True, check=False, timeout=3500)
    assert done.returncode == 0, done.stderr[-6000:]
    assert (tmp_path / "build/smoke/results/claims.csv").is_file()
    submitted = done.stderr.count("has been submitted with SLURM jobid")
    assert submitted > 5, "the jobs went through the queue"
