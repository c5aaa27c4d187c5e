"""The objectives of `ssmast pretrain`, by name."""

from typing import Any

from ssmast.settings import UsageError
from ssmast.training.objective import Objective
from ssmast.training.objectives.of_lightly import DINO, BarlowTwins, Mosaic, SwAV, VICReg
from ssmast.training.objectives.ss_mast import SSMAST
from ssmast.training.objectives.ssast import SSAST

OBJECTIVES: dict[str, type[Objective[Any, Any, Any]]] = {
    "ss_mast": SSMAST,
    "ss_mast_mosaic": Mosaic,
    "swav": SwAV,
    "vicreg": VICReg,
    "barlow_twins": BarlowTwins,
    "dino": DINO,
    "ssast": SSAST,
}


def objective_of(name: str) -> type[Objective[Any, Any, Any]]:
    """The class that `objective=` names.

    Raises:
        UsageError: for another name; one's own objective is run by its own file.
    """
    if name not in OBJECTIVES:
        raise UsageError(
            f"objective must be one of {', '.join(OBJECTIVES)}, got {name!r}; an objective "
            "of your own is run by its own file (ssmast.train)"
        )
    return OBJECTIVES[name]
