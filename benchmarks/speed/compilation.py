"""How long the compilation of a variant takes where nothing is compiled yet."""

from __future__ import annotations

import os
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from tempfile import TemporaryDirectory

import torch

from benchmarks.speed.variants import VARIANTS, Setting


def cold_seconds(setting: Setting, name: str) -> float:
    """Wall time by which the first forward and backward pass of a variant is longer than the next.

    In a process of its own, whose compiler finds nothing that was kept from before.

    Args:
        setting: of the model; its depth changes little, as layers of a size share their code.
        name: of the variant.
    """
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        return process.submit(_measure, setting, name, torch.get_num_threads()).result()


def _measure(setting: Setting, name: str, threads: int) -> float:
    torch.set_num_threads(threads)
    with TemporaryDirectory() as folder:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = folder
        variant = VARIANTS[name](setting)
        times = []
        for _ in range(2):
            start = time.perf_counter()
            variant.forward_backward()
            if setting.device == "cuda":
                torch.cuda.synchronize()
            times.append(time.perf_counter() - start)
    return times[0] - times[1]
