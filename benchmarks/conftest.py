"""Options of the papers' tables: budget, data, seeds, folders."""

import warnings
from pathlib import Path

import pytest
import torch

from benchmarks.papers.budgets import NAMES


def pytest_addoption(parser):
    group = parser.getgroup("papers' tables")
    group.addoption(
        "--budget", default="short", choices=NAMES, help="how long rows are trained (short)"
    )
    group.addoption("--root", default="data", help="folder of the data sets (data)")
    group.addoption("--seeds", default="0", help="seeds, such as 0,1,2 (0)")
    group.addoption(
        "--out", help="folder of the results, JSON files (runs/papers/results; of smoke, none)"
    )
    group.addoption(
        "--scratch", help="folder of checkpoints and weights (runs/papers/runs; of smoke, none)"
    )
    group.addoption(
        "--accumulate",
        type=int,
        default=1,
        help="parts that a batch is computed in, where a GPU is too small for the whole (1)",
    )
    group.addoption("--inception", help="weights of the Inception network, for the FID")


def pytest_generate_tests(metafunc):
    if "seed" in metafunc.fixturenames:
        seeds = [int(seed) for seed in metafunc.config.getoption("--seeds").split(",")]
        metafunc.parametrize("seed", seeds, ids=[f"seed{seed}" for seed in seeds])


@pytest.fixture(scope="session")
def folders(request, tmp_path_factory):
    """Those of results and of checkpoints; what a smoke run leaves is of no use to another."""
    smoke = request.config.getoption("--budget") == "smoke"
    kept = tmp_path_factory.mktemp("papers") if smoke else Path("runs/papers")
    option = request.config.getoption
    return Path(option("--out") or kept / "results"), Path(option("--scratch") or kept / "runs")


@pytest.fixture(autouse=True)
def _as_in_a_program():
    """Warnings are shown, and no errors; one thread on a CPU, and float32 on a GPU, for all."""
    torch.set_num_threads(1)
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        yield
