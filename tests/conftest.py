"""Fixtures that every station's tests share."""

import os
from pathlib import Path

import pytest
import torch

from tests.gpu.build import build, missing
from tests.sets import encoder_folder, sets, tiny_encoder  # noqa: F401 - fixtures

_THREADS = torch.get_num_threads()
SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


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
