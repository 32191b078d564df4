"""Machines that are not the developer's: the same bytes come out, or one sentence says why nothing can.

Each condition is tried on a command that writes a table; all at once on the engine, which takes seconds to start.
"""

from __future__ import annotations

import atexit
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from tiny_model import make_model

# Python leaves the number format of the locale alone until a program or a library asks for it: here one has.
CODE = """
import contextlib, locale
with contextlib.suppress(locale.Error):
    locale.setlocale(locale.LC_ALL, "")
from lumoe.cli import main
main()
"""


@dataclass(frozen=True)
class Condition:
    """How a command is started: what goes before it, its environment, and what is done in its process first."""

    name: str
    before: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)
    first: Callable[[], object] | None = None
    folder: str = "plain"

    def __add__(self, other: Condition) -> Condition:
        """Both at once."""
        folder = other.folder if self.folder == "plain" else self.folder
        environment = self.environment | other.environment
        name = f"{self.name}, {other.name}"
        return Condition(name, self.before + other.before, environment, self.first or other.first, folder)


def one_core() -> None:
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


def may_unshare() -> bool:
    """Whether this machine lets a process leave the network or its privileges behind."""
    unshare = shutil.which("unshare")
    return unshare is not None and subprocess.run([unshare, "-U", "-n", "true"], capture_output=True).returncode == 0


def german() -> dict[str, str]:
    """Environment of a locale with a decimal comma, made here; the plain one where that is not possible."""
    folder = Path(tempfile.mkdtemp(prefix="lumoe-locale-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    make = [shutil.which("localedef") or "localedef", "-i", "de_DE", "-f", "UTF-8", str(folder / "de_DE.UTF-8")]
    try:
        subprocess.run(make, capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return {}
    return {"LOCPATH": str(folder), "LC_ALL": "de_DE.UTF-8"}


GERMAN = german()
# A user without a name, a home and any capability, in a network namespace that has no route.
NOBODY = Condition("nobody", ("unshare", "-U")) if may_unshare() else Condition("plain")
OFFLINE = Condition("offline", ("unshare", "-r", "-n")) if may_unshare() else Condition("plain")
ALONE = (
    Condition("one core", first=one_core),
    Condition("no home", environment={"HOME": "/proc/none"}),
    Condition("spaces and letters", folder="Ein Ordner für Größe β"),
    Condition("comma locale", environment=GERMAN),
    Condition("ASCII locale", environment={"LC_ALL": "POSIX", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}),
    Condition("far east", environment={"TZ": "Pacific/Kiritimati"}),
    Condition("far west", environment={"TZ": "<-12>12"}),
    Condition("no programs, git among them", environment={"PATH": "/nowhere"}),
    OFFLINE,
    NOBODY,
)
EAST = ALONE[0] + ALONE[1] + ALONE[2] + ALONE[3] + ALONE[5] + OFFLINE
WEST = ALONE[2] + ALONE[4] + ALONE[6] + ALONE[7] + NOBODY
# Each alone takes a minute in all, and is asked for with LUMOE_ODD_MACHINES=each.
CONDITIONS = ALONE if os.environ.get("LUMOE_ODD_MACHINES") == "each" else (EAST, WEST)


def run(arguments: list[str], condition: Condition, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **condition.environment}
    command = [*(shutil.which(word) or word for word in condition.before), sys.executable, "-c", CODE, *arguments]
    return subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, encoding="utf-8", preexec_fn=condition.first
    )


def place(tmp_path: Path, condition: Condition) -> Path:
    folder = tmp_path / condition.folder
    folder.mkdir()
    return folder


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    folder = tmp_path_factory.mktemp("plain")
    done = run(["photonics", "estimate", "--output", "table.csv"], Condition("plain"), folder)
    assert done.returncode == 0, done.stderr
    return (folder / "table.csv").read_bytes()


@pytest.mark.parametrize("condition", CONDITIONS, ids=lambda condition: condition.name)
def test_a_table_is_the_same_bytes(expected: bytes, tmp_path: Path, condition: Condition) -> None:
    folder = place(tmp_path, condition)
    done = run(["photonics", "estimate", "--output", "table.csv"], condition, folder)
    assert done.returncode == 0, done.stderr
    assert (folder / "table.csv").read_bytes() == expected
    mistake = run(["photonics", "estimate", "--devices", "größe.yaml"], condition, folder)
    assert (mistake.returncode, "Traceback" in mistake.stderr) == (2, False), mistake.stderr
    assert ".yaml: no such file" in mistake.stderr


def test_the_engine_gives_the_same_text(tmp_path: Path) -> None:
    folder = place(tmp_path, EAST)
    make_model(folder / "Modell ä")
    command = ["moe", "generate", "--model", "Modell ä", "--new-tokens", "8", "--threads", "1", "the quick"]
    plain, changed = (run(command, condition, folder) for condition in (Condition("plain"), EAST))
    assert plain.returncode == changed.returncode == 0, changed.stderr
    assert plain.stdout == changed.stdout


@pytest.mark.skipif(NOBODY.name == "plain", reason="privileges cannot be given up here")
def test_a_place_without_permission_is_named(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir(mode=0o555)
    done = run(["photonics", "estimate", "--output", "kept/table.csv"], NOBODY, tmp_path)
    assert done.returncode == 2, done.stderr
    assert "lumoe: kept/table.csv: cannot be written (Permission denied); choose another place" in done.stderr
    assert "Traceback" not in done.stderr
    (tmp_path / "secret.yaml").touch(mode=0o200)
    done = run(["photonics", "estimate", "--devices", "secret.yaml"], NOBODY, tmp_path)
    assert done.returncode == 2
    assert done.stderr == "lumoe: secret.yaml: cannot be read (Permission denied)\n"


def test_two_gibibytes_are_enough_for_the_shipped_model() -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_DATA, (2 << 30, 2 << 30))

    words = ["moe", "generate", "--model", "data/models/mini-mixtral", "--new-tokens", "4", "--threads", "1", "Return"]
    done = run(words, Condition("2 GiB", first=limit), Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Return")


@pytest.mark.skipif(not GERMAN, reason="no localedef with the German locale")
def test_the_locale_has_a_comma() -> None:
    code = "import locale; locale.setlocale(locale.LC_ALL, ''); print(locale.localeconv()['decimal_point'])"
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ, **GERMAN}, capture_output=True, text=True)
    assert done.stdout == ",\n"
