"""Options of the test run: device and dtype of the property tests, and processes side by side."""

import os

import pytest
import torch

if "PYTEST_XDIST_WORKER_COUNT" in os.environ:
    # Several processes that each use all cores are slower than one.
    workers = int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    threads = max(1, torch.get_num_threads() // workers)
    torch.set_num_threads(threads)
    # Those that tests start, too: on a busy machine threads wait for each other for minutes.
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))


def pytest_addoption(parser):
    parser.addoption("--device", default="cpu", help="device of the property tests")
    parser.addoption(
        "--dtype",
        default="float64",
        choices=["float64", "float32"],
        help="dtype of the property tests, each of which has bounds of its own",
    )


@pytest.fixture
def device(request):
    return torch.device(request.config.getoption("--device"))


@pytest.fixture
def dtype(request):
    return getattr(torch, request.config.getoption("--dtype"))


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)
