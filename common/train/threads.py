"""No more threads than cores that are free, while a network trains and answers.

An OpenMP thread that waits for one without a core spins (pytorch/pytorch#57715): beside one other
process that computes, steps of two threads on two cores took 5 to 50 times as long, and one thread
a twentieth longer than alone (benchmarks/RECORDS.md). So threads are given up while others compute,
and taken back later. How many there are changes the last bits of a result: only a fixed number,
by --threads or OMP_NUM_THREADS, promises the same bits.
"""

import os
import time

import psutil
import torch
from joblib import cpu_count

LOOK_S = 1.0  # between looks
CERTAIN = 0.8  # of a core that is free before a thread is taken back: two loads must not alternate
COMPUTING = ("user", "system", "irq", "softirq", "steal")  # nice: who gives way, costs a tenth


class Threads:
    """torch's threads in this process: as many as they are until they adapt."""

    def __init__(self) -> None:
        self.most, self.used = 1, set[int]()

    def __str__(self) -> str:
        return (
            f"1 to {self.most} threads" if self.most > 1 else f"{torch.get_num_threads()} threads"
        )

    def adapt(self) -> None:
        """From now on have as many as are free, and at most as many as now."""
        self.most = min(torch.get_num_threads(), cpu_count())
        self.look_s, self.others_s = time.monotonic(), self._others_s()

    def look(self) -> None:
        """Give up threads, or take them back, by what others computed since the last look."""
        self.used.add(torch.get_num_threads())
        if self.most == 1 or (passed_s := time.monotonic() - self.look_s) < LOOK_S:
            return
        others_s, threads = self._others_s(), torch.get_num_threads()
        free = cpu_count() - (others_s - self.others_s) / passed_s
        self.look_s, self.others_s = self.look_s + passed_s, others_s
        if free < threads or free >= threads + CERTAIN:
            torch.set_num_threads(min(max(1, round(free)), self.most))

    def take_used(self) -> list[int]:
        """The least and the most threads since this was last asked for."""
        used, self.used = self.used or {torch.get_num_threads()}, set[int]()
        return [min(used), max(used)]

    @staticmethod
    def _others_s() -> float:
        """Seconds that the cores have computed for others who do not give way."""
        cores = psutil.cpu_times(percpu=True)
        if hasattr(os, "sched_getaffinity"):
            cores = [cores[i] for i in os.sched_getaffinity(0) if i < len(cores)]
        computed = sum(getattr(core, name, 0.0) for core in cores for name in COMPUTING)
        gives_way = hasattr(os, "nice") and os.nice(0) > 0  # then its own time is not among it
        return computed if gives_way else computed - time.process_time()


threads = Threads()
