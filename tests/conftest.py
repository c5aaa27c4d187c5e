"""Fixtures that every station's tests share."""

from pathlib import Path

import pytest
import torch

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(autouse=True)
def _same_numbers_every_time():
    torch.manual_seed(0)


@pytest.fixture
def shared_data() -> Path:
    """Folder of labelled sets of real audio; the test is skipped where it is absent."""
    if not SHARED_DATA.is_dir():
        pytest.skip("needs the labelled sets of real audio, which this machine does not have")
    return SHARED_DATA
