"""Threads are given up while others compute, and taken back."""

from types import SimpleNamespace

import psutil
import pytest
import torch

from common.train import device


@pytest.fixture
def machine(monkeypatch):
    """Four cores of which `others` are taken, a second a look; returns a function that looks."""
    clock = {"s": 0.0, "others": 0.0, "own": 0.0}
    monkeypatch.setattr(device, "cpu_count", lambda: 4)
    monkeypatch.setattr(device.time, "monotonic", lambda: clock["s"])
    monkeypatch.setattr(device.time, "process_time", lambda: clock["own"])
    monkeypatch.setattr(device.os, "nice", lambda more: 0, raising=False)
    monkeypatch.setattr(device.os, "sched_getaffinity", lambda pid: {0, 2}, raising=False)

    def cpu_times(percpu):  # the second core is not ours
        user = clock["others"] + clock["own"], 99 * clock["s"], 0.0
        return [SimpleNamespace(user=seconds, nice=1e9) for seconds in user]

    monkeypatch.setattr(psutil, "cpu_times", cpu_times)
    torch.set_num_threads(4)
    pool = device.Threads()
    pool.adapt()

    def look(others, seconds=1.0):
        clock["s"] += seconds
        clock["others"] += others * seconds
        clock["own"] += torch.get_num_threads() * seconds
        pool.look()
        return torch.get_num_threads()

    return pool, look


def test_threads_are_given_up_and_taken_back(machine):
    """0.03 is the noise of a machine at rest; at 2.5 half a core more is free: not certain."""
    pool, look = machine
    others = {0.03: 4, 1.0: 3, 2.7: 1, 9.0: 1, 2.5: 1, 2.0: 2, 0.0: 4}
    assert {load: look(load) for load in others} == others
    assert pool.take_used() == [1, 4]
    look(0.0)
    assert pool.take_used() == [4, 4]
    assert [look(4.0, seconds=0.6) for _ in range(2)] == [4, 1]  # a look waits for a second


def test_fixed_threads_stay(monkeypatch):
    pool = device.Threads()
    torch.set_num_threads(3)
    monkeypatch.setattr(psutil, "cpu_times", lambda percpu: pytest.fail("looked"))
    pool.look()
    assert (pool.take_used(), str(pool)) == ([3, 3], "3 threads")
