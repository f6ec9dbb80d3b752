"""Options of the papers' tables: budget, data, seeds, folders."""

import warnings

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
        "--out", default="runs/papers/results", help="folder of the results, JSON files"
    )
    group.addoption(
        "--scratch", default="runs/papers/runs", help="folder of checkpoints and weights"
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


@pytest.fixture(autouse=True)
def _as_in_a_program():
    """Warnings are shown, and no errors; all rows of the CPU have one thread each."""
    torch.set_num_threads(1)
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        yield
