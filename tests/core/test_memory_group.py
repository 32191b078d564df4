"""Limits of control groups, of both versions, are found wherever this process is."""

from __future__ import annotations

from pathlib import Path

import pytest

from lumoe.memory_group import memory_groups, room_bytes

NONE_V1 = "9223372036854771712"


def write(folder: Path, **values: object) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in values.items():
        (folder / ("cgroup.controllers" if name == "controllers" else f"memory.{name}")).write_text(f"{value}\n")
    return folder


@pytest.fixture
def second(tmp_path: Path) -> Path:
    """Version 2: a service within a slice."""
    write(tmp_path, controllers="memory")
    write(tmp_path / "slice", max=9000, high="max", current=5000, stat="anon 3000\ninactive_file 500\nactive_file 100")
    write(tmp_path / "slice" / "service", max="max", high="max", current=4000, stat="anon 4000")
    (tmp_path / "self").write_text("0::/slice/service\n")
    return tmp_path


def test_the_tightest_group_decides_and_files_in_memory_do_not_count(second: Path) -> None:
    assert [group.limit_bytes for group in memory_groups(second, second / "self")] == [None, 9000]
    assert room_bytes(second, second / "self") == 9000 - (5000 - 500 - 100)
    write(second / "slice" / "service", max=4500)
    assert room_bytes(second, second / "self") == 500
    write(second / "slice" / "service", high=4200)
    assert room_bytes(second, second / "self") == 200, "what only slows down is heeded, too"
    write(second / "slice" / "service", high=3000)
    assert room_bytes(second, second / "self") == 0


def test_no_limit_is_none(second: Path) -> None:
    write(second / "slice", max="max")
    assert room_bytes(second, second / "self") is None
    assert room_bytes(second, second / "absent") is None


def test_version_one_has_its_own_names_and_its_own_infinity(tmp_path: Path) -> None:
    (tmp_path / "self").write_text("4:memory:/docker/1\n3:cpu,cpuacct:/docker/1\n")
    folder = tmp_path / "memory" / "docker" / "1"
    stat = "cache 900\ntotal_inactive_file 600\ntotal_active_file 300\ntotal_rss 2100"
    write(folder, limit_in_bytes=8000, soft_limit_in_bytes=NONE_V1, usage_in_bytes=3000, stat=stat)
    write(tmp_path / "memory", limit_in_bytes=NONE_V1, soft_limit_in_bytes=NONE_V1, usage_in_bytes=9999, stat="")
    assert room_bytes(tmp_path, tmp_path / "self") == 8000 - (3000 - 900)
    write(folder, soft_limit_in_bytes=2500)
    assert room_bytes(tmp_path, tmp_path / "self") == 2500 - (3000 - 900)


def test_a_container_sees_its_group_as_the_root(tmp_path: Path) -> None:
    (tmp_path / "self").write_text("4:memory:/docker/1\n")
    write(tmp_path / "memory", limit_in_bytes=700, soft_limit_in_bytes=NONE_V1, usage_in_bytes=300, stat="")
    assert room_bytes(tmp_path, tmp_path / "self") == 400
