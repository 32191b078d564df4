"""`lumoe doctor` judges what it finds by what the pipeline asks for."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from lumoe import machine
from lumoe.cli import app
from lumoe.errors import UserError
from lumoe.pipeline import doctor

GIB = 2**30


@pytest.mark.parametrize(("running", "state"), [((3, 10), "missing"), ((3, 11), "ok"), ((3, 12), "limited")])
def test_python(running: tuple[int, int], state: str) -> None:
    assert doctor.python(running).state == state


@pytest.mark.parametrize(("size", "state"), [(4 * GIB, "limited"), (8 * GIB, "ok")])
def test_memory(size: int, state: str) -> None:
    assert doctor.memory(size).state == state


@pytest.mark.parametrize(("free", "state"), [(GIB, "missing"), (6 * GIB, "ok")])
def test_disk(free: int, state: str) -> None:
    assert doctor.disk(free).state == state


@pytest.mark.parametrize(("memory_bytes", "state"), [(16 * 10**9, "limited"), (80 * 10**9, "ok")])
def test_a_gpu_is_judged_by_the_smallest_budget_of_mixtral(memory_bytes: int, state: str) -> None:
    assert doctor.gpu([machine.Gpu("card", memory_bytes, "1")]).state == state


def test_without_a_gpu_the_pipeline_still_runs() -> None:
    finding = doctor.gpu([])
    assert finding.state == "limited"
    assert not finding.needed
    assert "not-run" in finding.means


@pytest.mark.parametrize(
    ("compiler", "flags", "state", "words"),
    [
        ("/usr/bin/c++", {"avx2"}, "ok", "at first use"),
        (None, {"avx2"}, "limited", "install g++"),
        ("/usr/bin/c++", {"sse2"}, "limited", "torch's kernels"),
    ],
)
def test_kernels_need_a_compiler_and_avx2(compiler: str | None, flags: set[str], state: str, words: str) -> None:
    finding = doctor.kernels(compiler, flags)
    assert finding.state == state
    assert not finding.needed
    assert words in finding.means


def test_the_driver_is_asked_and_its_absence_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert machine.gpus() == []
    fake = tmp_path / "nvidia-smi"
    fake.write_text(f"#!{sys.executable}\nprint('Some GPU, with a comma, 81920, 570.1')\n")
    fake.chmod(0o755)
    assert machine.gpus() == [machine.Gpu("Some GPU, with a comma", 80 * GIB, "570.1")]


def test_a_container_s_limit_is_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limit = tmp_path / "memory.max"
    limit.write_text("1000000\n")
    monkeypatch.setattr(machine, "CGROUP_LIMITS", (limit, tmp_path / "absent"))
    assert machine.memory_bytes() == 1_000_000
    limit.write_text("max\n")
    assert machine.memory_bytes() > 1_000_000


def test_a_missing_or_wrong_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = ["no-such-package-of-anyone>=1", "numpy>=99", "pytest>=99; extra == 'dev'"]
    monkeypatch.setattr(doctor, "requires", lambda name: asked)
    finding = doctor.packages()
    assert finding.state == "missing"
    assert "no-such-package-of-anyone is not installed" in finding.found
    assert "numpy" in finding.found
    assert "pytest" not in finding.found


def test_json_is_for_programs_and_the_exit_code_says_whether_it_can_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = CliRunner().invoke(app, ["doctor", "--folder", str(tmp_path), "--json"])
    findings = {row["what"]: row for row in json.loads(run.stdout)}
    assert {"Python", "memory", "GPU", "slurm"} <= set(findings)
    broken = [row for row in findings.values() if row["needed"] and row["state"] == "missing"]
    assert run.exit_code == bool(broken)
    monkeypatch.setattr(machine, "disk_free_bytes", lambda folder: 0)
    assert CliRunner().invoke(app, ["doctor"]).exit_code == 1


def test_an_absent_folder_is_the_user_s_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        doctor.examine(tmp_path / "absent")


def test_what_is_available_ends_at_the_container(monkeypatch: pytest.MonkeyPatch) -> None:
    machine_free = machine.available_bytes()
    assert 0 < machine_free <= machine.memory_bytes()
    monkeypatch.setattr(machine.memory_group, "room_bytes", lambda: 2_000_000)
    assert machine.available_bytes() == 2_000_000
    monkeypatch.setattr(machine.memory_group, "room_bytes", lambda: None)
    assert machine.available_bytes() > 2_000_000
