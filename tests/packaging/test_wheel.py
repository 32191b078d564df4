"""The wheel installs and runs `lumoe` outside the checkout, with the numbers that it ships; environments agree."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml

pytestmark = pytest.mark.pipeline
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("build", reason="build is not installed: pip install -r requirements.lock")
    folder = tmp_path_factory.mktemp("wheel")
    # The files of the commit and what is edited, without what earlier builds left behind.
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=False)
    if listing.returncode:
        pytest.skip("not a git checkout")
    source = folder / "source"
    for name in filter(None, listing.stdout.decode().split("\0")):
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, source / name)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(source)]
    built = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert built.returncode == 0, built.stdout[-2000:] + built.stderr[-2000:]
    (found,) = folder.glob("lumoe-*.whl")
    return found


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install the wheel where only its own code is found; its dependencies are those of this environment."""
    target = tmp_path_factory.mktemp("installed")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(target), str(wheel)]
    subprocess.run(command, check=True, timeout=300)
    return target


def lumoe(installed: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    where = {**os.environ, "PYTHONPATH": str(installed)}
    command = [sys.executable, str(installed / "bin/lumoe"), *arguments]
    return subprocess.run(command, cwd=installed, env=where, capture_output=True, text=True, check=False, timeout=300)


def test_it_runs_its_own_code_outside_the_checkout(installed: Path) -> None:
    code = "import lumoe, lumoe.data; print(lumoe.__file__, lumoe.data.__file__)"
    where = {**os.environ, "PYTHONPATH": str(installed)}
    command = [sys.executable, "-c", code]
    run = subprocess.run(command, cwd=installed, env=where, capture_output=True, text=True, check=True)
    assert all(Path(name).is_relative_to(installed) for name in run.stdout.split()), run.stdout
    version = lumoe(installed, "--version")
    assert version.returncode == 0, version.stderr
    assert re.fullmatch(r"lumoe \d+\.\d+\.\d+\n", version.stdout)


def test_it_plans_with_the_numbers_that_it_ships(installed: Path) -> None:
    words = ["--model", "mixtral-8x7b", "--hardware", "a100-80gb", "--budget", "30GB", "--prefer", "quality"]
    run = lumoe(installed, "moe", "plan", *words)
    assert run.returncode == 0, run.stderr
    assert "256 at 16 bits" in run.stdout


def test_it_models_the_accelerators(installed: Path, tmp_path: Path) -> None:
    words = ["--output", str(tmp_path / "layers.csv"), "--summary", str(tmp_path / "summary.csv")]
    run = lumoe(installed, "photonics", "pcnna", *words)
    assert run.returncode == 0, run.stderr
    header = (tmp_path / "layers.csv").read_text(encoding="utf-8").splitlines()[0]
    assert {"layer", "speedup_full_system"} <= set(header.split(","))


def test_doctor_says_that_the_model_stayed_behind(installed: Path) -> None:
    run = lumoe(installed, "doctor", "--json")
    assert "mini-mixtral is not here" in run.stdout, run.stderr


def test_nothing_else_travels(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert not [name for name in names if name.endswith(".safetensors") or name.startswith(("tests/", "docs/"))]
    assert "lumoe/data/claims.yaml" in names
    assert "lumoe/plots/lumoe.mplstyle" in names


def test_the_container_installs_the_lock() -> None:
    text = (ROOT / "envs/Dockerfile").read_text(encoding="utf-8")
    environment = yaml.safe_load((ROOT / "envs/lumoe.yaml").read_text(encoding="utf-8"))
    (python,) = [item for item in environment["dependencies"] if str(item).startswith("python=")]
    assert f"FROM python:{python.removeprefix('python=')}-" in text
    assert "--requirement requirements.lock" in text
    for copied in re.findall(r"^COPY (\S+) \./$", text, re.M):
        assert (ROOT / copied).exists()


def test_the_catalog_names_what_the_workflow_has() -> None:
    catalog = yaml.safe_load((ROOT / ".snakemake-workflow-catalog.yml").read_text(encoding="utf-8"))
    rules = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "workflow/rules").glob("*.smk"))
    assert catalog["usage"]["software-stack-deployment"]["conda"] == ("conda:" in rules)
    assert catalog["usage"]["report"] == ("report(" in rules)
