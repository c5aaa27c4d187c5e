"""Fixtures that every room's tests share, and how the tests are spread over processes."""

import os
from pathlib import Path

# The workers of pytest-xdist share the cores, where a training run that takes them all would only
# wait. Before torch is imported, since its OpenMP reads this once.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("OMP_THREAD_LIMIT", "1")

import gc
import multiprocessing
import time

import pytest
import torch
from accelerate.state import AcceleratorState

from ssmast.command import num_cores
from tests.gpu.build import build, missing
from tests.report.browser import BROWSERS, find_browser
from tests.sets import encoder_folder, sets, tiny_encoder  # noqa: F401 - fixtures

_THREADS = torch.get_num_threads()
_MOST_WORKERS = 8  # one worker holds about 1 GB
SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--require-browser",
        action="store_true",
        help="fail where no browser is found, instead of skipping the tests that need one",
    )
    parser.addoption("--no-skips", action="store_true", help="a skipped test is a failure")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--require-browser") and find_browser() is None:
        raise pytest.UsageError(
            f"--require-browser wants one of {', '.join(BROWSERS)} on the path and found none; "
            "install one, such as Debian's package chromium"
        )


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item):
    report = (yield).get_result()
    if report.skipped and item.config.getoption("--no-skips"):
        report.outcome = "failed"


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Workers of `-n auto`: the cores that this process may use, within its memory."""
    return min(num_cores(), _MOST_WORKERS)


@pytest.fixture(autouse=True)
def _same_numbers_every_time():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _threads_as_before():
    """A training run takes all cores; beside other work that makes the tests after it slow.

    Set before and after: the run may be that of a fixture that serves a whole module.
    """
    torch.set_num_threads(_THREADS)
    yield
    torch.set_num_threads(_THREADS)


@pytest.fixture(autouse=True)
def _device_as_the_test_says():
    """Accelerate keeps device and precision for a process; one test's would be those of all.

    Where there is a card a command takes it, and in bfloat16, while others ask for the CPU.
    """
    _forget_device()
    yield
    _forget_device()


def _forget_device() -> None:
    if torch.cuda.is_available():
        AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(autouse=True)
def _no_process_left_over():
    """A loader's worker that outlives its test is killed when Python ends, with a traceback."""
    yield
    end = time.monotonic() + 10
    while left := multiprocessing.active_children():
        gc.collect()
        assert time.monotonic() < end, f"the test left worker processes running: {left}"
        time.sleep(0.02)


@pytest.fixture
def shared_data() -> Path:
    """Folder of labelled sets of real audio; the test is skipped where it is absent."""
    if not SHARED_DATA.is_dir():
        pytest.skip("needs the labelled sets of real audio, which this machine does not have")
    return SHARED_DATA


@pytest.fixture(scope="session")
def stand_in() -> Path:
    """Folder of the compiled stand-in of a card (tests/gpu).

    The test is skipped where it cannot be built; SSMAST_STAND_IN=required makes that a failure.
    """
    if why := missing():
        required = os.environ.get("SSMAST_STAND_IN") == "required"
        (pytest.fail if required else pytest.skip)(why)
    return build()
