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
    """Wall time to build a variant and to train on one batch, beyond that of it uncompiled.

    In a process of its own, whose compiler finds nothing that was kept from before.
    """
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        return process.submit(_measure, setting, name, torch.get_num_threads()).result()


def _measure(setting: Setting, name: str, threads: int) -> float:
    torch.set_num_threads(threads)
    uncompiled = name.removeprefix("compiled").strip() or "eager"
    with TemporaryDirectory() as folder:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = folder
        plain = _first_use(setting, uncompiled)
        return _first_use(setting, name) - plain


def _first_use(setting: Setting, name: str) -> float:
    start = time.perf_counter()
    VARIANTS[name](setting).forward_backward()
    if setting.device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start
