"""The lock excludes, and lets no one starve."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from lumoe.moe.engine.fair_lock import FairLock


def test_one_at_a_time() -> None:
    lock, inside, worst = FairLock(), 0, 0

    def work(_: int) -> None:
        nonlocal inside, worst
        for _ in range(200):
            with lock:
                inside += 1
                worst = max(worst, inside)
                inside -= 1

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    assert worst == 1


def test_a_waiting_thread_goes_before_one_that_comes_back() -> None:
    lock, order = FairLock(), []
    entered = threading.Event()

    def wait() -> None:
        entered.set()
        with lock:
            order.append("waiting")

    other = threading.Thread(target=wait)
    with lock:
        other.start()
        entered.wait()
        while not lock._waiting:
            pass
    with lock:
        order.append("again")
    other.join()
    assert order == ["waiting", "again"]


def test_a_fault_inside_opens_it_again() -> None:
    lock = FairLock()
    with pytest.raises(KeyError), lock:
        raise KeyError
    with lock:
        pass
