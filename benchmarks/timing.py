"""How all benchmarks take times, and what they say of the machine.

Tasks are timed in rounds: each round runs every task once, in an order that rotates, and every
other round backwards, so that no task always follows the same one, whose data it finds in the
cache. What disturbs the machine disturbs neighbours alike, so that a ratio within a round is
steadier than a time. On one thread of the CPU it is CPU time of the process, which other processes
do not lengthen; on several, whose CPU times would be added up, it is wall time; on CUDA it is wall
time between events.
"""

from __future__ import annotations

import os
import platform
import time
import warnings
from collections.abc import Callable, Mapping
from importlib.metadata import version
from statistics import median
from typing import Any

import torch

Task = Callable[[], object]
FILES = ("data", "test", "out")
"""Arguments of commands that say where files are."""


def given(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a command was asked for, of its ``locals()``, but for where files are."""
    return {name: value for name, value in arguments.items() if name not in FILES}


def environment(device: str = "cpu") -> dict[str, Any]:
    """Return the machine, what its clock reads, and the versions of what takes part."""
    threads = torch.get_num_threads()
    libraries = ("torch", "nflows", "zuko", "normflows", "lightning", "nflows-mixer")
    cpu = f"CPU, {threads} thread{'s' if threads > 1 else ''}"
    return {
        "clock": "CPU time" if device == "cpu" and threads == 1 else "wall time",
        "machine": torch.cuda.get_device_name() if device == "cuda" else cpu,
        "cores": os.cpu_count(),
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in libraries},
        },
        "date": time.strftime("%Y-%m-%d"),
    }


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


def interleaved(
    tasks: Mapping[str, Task], rounds: int, device: str = "cpu", calls: int = 1
) -> dict[str, list[float]]:
    """Return seconds of each task in each round, after two calls of each that are not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in tasks}
    names = list(tasks)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # old parts of torch that other libraries still call
        for task in tasks.values():
            for _ in range(2):
                task()
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


def timed(seconds: list[float], images: int) -> dict[str, Any]:
    """Return what is kept of a task that takes so many images."""
    middle = median(seconds)
    return {
        "milliseconds": 1000 * middle,
        "images_per_second": images / middle,
        "rounds": [1000 * value for value in seconds],
    }
