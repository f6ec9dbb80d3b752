"""Timing of tasks in rounds: each round runs every task once, in an order that changes.

It rotates, and every other round runs backwards, so that no task always follows the same one,
whose data it finds in the cache. What disturbs the machine disturbs neighbours alike, so that a
ratio within a round is steadier than a time. On one thread of the CPU it is CPU time of the
process, which other processes do not lengthen; on several, whose CPU times would be added up, it is
wall time; on CUDA it is wall time between events.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from statistics import median

import torch

Task = Callable[[], object]


def seconds_of(task: Task, device: str = "cpu", calls: int = 1) -> float:
    """Seconds of one call, of the mean of ``calls``."""
    if device == "cpu":
        now = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
        start = now()
        for _ in range(calls):
            task()
        return (now() - start) / calls
    before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    before.record()
    for _ in range(calls):
        task()
    after.record()
    torch.cuda.synchronize()
    return before.elapsed_time(after) / 1000 / calls


def clock(device: str) -> str:
    """What ``seconds_of`` reads, in words."""
    return "CPU time" if device == "cpu" and torch.get_num_threads() == 1 else "wall time"


def interleaved(
    tasks: Mapping[str, Task], rounds: int, device: str = "cpu", calls: int = 1
) -> dict[str, list[float]]:
    """Return seconds of each task in each round, after two calls of each that are not counted."""
    for task in tasks.values():
        for _ in range(2):
            task()
    seconds: dict[str, list[float]] = {name: [] for name in tasks}
    names = list(tasks)
    for turn in range(rounds):
        start = turn % len(names)
        order = names[start:] + names[:start]
        for name in order[::-1] if turn % 2 else order:
            seconds[name].append(seconds_of(tasks[name], device, calls))
    return seconds


def ratios(seconds: Mapping[str, list[float]], name: str, floor: str) -> dict[str, float]:
    """Median and smallest of the ratios of a task to another in the same round."""
    values = [mine / its for mine, its in zip(seconds[name], seconds[floor])]
    return {"median": median(values), "min": min(values)}
