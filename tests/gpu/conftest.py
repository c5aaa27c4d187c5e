"""Where the stand-in of a card cannot be built its tests are skipped, unless that is forbidden."""

import os
from pathlib import Path

import pytest

from tests.gpu.build import build, missing


@pytest.fixture(scope="session")
def stand_in() -> Path:
    """Folder of the compiled stand-in. SSMAST_STAND_IN=required makes its absence a failure."""
    if why := missing():
        required = os.environ.get("SSMAST_STAND_IN") == "required"
        (pytest.fail if required else pytest.skip)(why)
    return build()
