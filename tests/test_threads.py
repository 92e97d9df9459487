"""Threads are given up while others compute, and taken back."""

import psutil
import pytest
import torch

from common.train import threads as room
from common.train.threads import Threads


@pytest.fixture
def machine(monkeypatch):
    """Four cores of which `others` are taken, a second a look; returns a function that looks."""
    clock = {"s": 0.0, "others": 0.0, "own": 0.0}
    monkeypatch.setattr(room, "cpu_count", lambda: 4)
    monkeypatch.setattr(room.time, "monotonic", lambda: clock["s"])
    monkeypatch.setattr(room.time, "process_time", lambda: clock["own"])
    monkeypatch.setattr(room.os, "nice", lambda more: 0, raising=False)
    monkeypatch.setattr(room.os, "sched_getaffinity", lambda pid: {0, 2}, raising=False)
    times = type("Times", (), {"user": 0.0, "nice": 1e9})

    def cpu_times(percpu):
        core = times()
        core.user = clock["others"] + clock["own"]
        hidden = times()  # of a core that is not ours
        hidden.user = 99 * clock["s"]
        return [core, hidden, times()]

    monkeypatch.setattr(psutil, "cpu_times", cpu_times)
    torch.set_num_threads(4)
    pool = Threads()
    pool.adapt()

    def look(others, seconds=1.0):
        clock["s"] += seconds
        clock["others"] += others * seconds
        clock["own"] += torch.get_num_threads() * seconds
        pool.look()
        return torch.get_num_threads()

    return pool, look


def test_threads_are_given_up_and_taken_back(machine):
    pool, look = machine
    assert look(0.03) == 4  # the noise of a machine at rest
    assert look(1.0) == 3
    assert look(2.7) == 1
    assert look(9.0) == 1
    assert look(2.5) == 1  # half a core more is free: not certain
    assert look(2.0) == 2
    assert look(0.0) == 4
    assert pool.take_used() == [1, 4]
    look(0.0)
    assert pool.take_used() == [4, 4]


def test_a_look_waits_for_a_second(machine):
    _, look = machine
    assert look(4.0, seconds=0.6) == 4
    assert look(4.0, seconds=0.6) == 1


def test_fixed_threads_stay(machine, monkeypatch):
    pool = Threads()
    torch.set_num_threads(3)
    monkeypatch.setattr(psutil, "cpu_times", lambda percpu: pytest.fail("looked"))
    pool.look()
    assert (pool.take_used(), str(pool)) == ([3, 3], "3 threads")
