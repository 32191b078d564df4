"""The documentation site builds strictly, and what it makes loads nothing from elsewhere."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("mkdocs", reason="mkdocs is not installed: pip install -r requirements.lock")
ROOT = Path(__file__).parents[2]
LOADED = re.compile(
    r"<(?:script|img|iframe|source)[^>]*\bsrc=\"?(https?:)?//|<link[^>]*rel=\"?(?:stylesheet|preload|preconnect)[^>]*href=\"?(https?:)?//"
)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)
    assert run.returncode == 0, run.stdout + run.stderr
    return folder


def test_nothing_is_loaded_from_elsewhere(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) > 10
    for page in pages:
        assert not LOADED.search(page.read_text(encoding="utf-8")), page


def test_the_reference_is_filled_from_the_program(site: Path) -> None:
    cli = (site / "reference/cli/index.html").read_text(encoding="utf-8")
    assert "lumoe claims explain" in cli
    assert "--sensitivity" in cli
    assert "calibration_tokens" in (site / "reference/settings/index.html").read_text(encoding="utf-8")
    assert "lumoe.moe.planning.plan" in (site / "reference/moe/index.html").read_text(encoding="utf-8")
