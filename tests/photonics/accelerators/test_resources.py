"""What overlaps and what adds up, by hand."""

from __future__ import annotations

import numpy as np

from lumoe.photonics.accelerators.resources import aligned, busiest, total_time


def test_the_slowest_stream_counts_and_preparations_add() -> None:
    times = aligned(
        {"core": np.array([[3.0], [1.0]]), "memory": np.array([[2.0, 5.0]]), "settling": np.array([[4.0], [0.5]])}
    )
    assert {name: part.shape for name, part in times.items()} == dict.fromkeys(times, (2, 2))
    total, limit = total_time(times, ["core", "memory"], ["settling"])
    assert total.tolist() == [[7.0, 9.0], [2.5, 5.5]]
    assert limit.tolist() == [["settling", "memory"], ["memory", "memory"]]
    total, limit = total_time(times, ["core"], [])
    assert total.tolist() == [[3.0, 3.0], [1.0, 1.0]]
    assert set(limit.ravel()) == {"core"}


def test_the_busiest_resource_is_that_of_most_time() -> None:
    seconds, limits = np.array([3.0, 2.0, 2.0]), np.array(["core", "memory", "memory"])
    assert busiest(seconds, limits) == "memory"
    assert busiest(np.array([1.0, 1.0]), np.array(["settling", "core"])) == "core"
