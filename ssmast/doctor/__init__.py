"""Check this machine: packages, decoders, devices, memory, disks, two steps of pretraining.

    ssmast doctor                  one line for each finding: ok, note, or problem with its cure
    ssmast doctor format=json      the same as one JSON object
    ssmast doctor data=FOLDER      what a folder of sounds is, and the command to run next

The exit status is 1 if there is a problem. Nothing is sent over the network, and files are written
to temporary folders only. It starts even if packages are missing or broken, and names them.
"""

import faulthandler
import json
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from ssmast.command import StoppedError
from ssmast.doctor.finding import CURES, Finding, problem, reason
from ssmast.doctor.machine import (
    check_caches,
    check_cores,
    check_decoders,
    check_extras,
    check_folders,
    check_gpus,
    check_memory,
    check_packages,
    check_python,
    check_self_tests,
    check_torch_family,
)
from ssmast.settings import Settings, command, setting

__all__ = ["CHECKS", "CURES", "Finding", "main"]

Check = Callable[[], Iterable[Finding]]
CHECKS: tuple[Check, ...] = (
    check_python,
    check_cores,
    check_memory,
    check_folders,
    check_caches,
    check_torch_family,  # before other checks import torch, so that its fault is named as such
    check_packages,
    check_extras,
    check_gpus,
    check_decoders,
    check_self_tests,
)


@dataclass(frozen=True, kw_only=True)
class DoctorConfig(Settings):
    """`ssmast doctor`."""

    data: str = setting("", "folder, list, table or archive of sounds to look at, instead")
    format: str = setting("text", "format of the output", choices=("text", "json"))


@command(DoctorConfig, "ssmast doctor")
def main(config: DoctorConfig, argv: list[str]) -> int:
    """`ssmast doctor`: 0 if nothing is a problem, else 1."""
    if sys.stderr is sys.__stderr__:
        faulthandler.enable()  # if a package crashes Python, the traceback names it
    found: list[Finding] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            for finding in _looked_at(config):
                found.append(finding)
                if config.format == "text":
                    sys.stdout.write(_line(finding))
                    sys.stdout.flush()
        except StoppedError as error:  # its self-test's run would speak of resume=auto
            raise StoppedError(error.signal_number) from error
    problems = sum(finding.status == "problem" for finding in found)
    if config.format == "json":
        rows = [finding._asdict() for finding in found]
        sys.stdout.write(json.dumps({"problems": problems, "findings": rows}, indent=1) + "\n")
    elif not config.data:
        sys.stdout.write(f"\n{problems or 'no'} problem{'' if problems == 1 else 's'}\n")
    return 1 if problems else 0


def _looked_at(config: DoctorConfig) -> Iterable[Finding]:
    if not config.data:
        return findings()
    from ssmast.doctor.sounds import check_sounds

    return check_sounds(config.data)


def findings(checks: Iterable[Check] = CHECKS) -> Iterator[Finding]:
    """Findings of the checks in order; a check that fails is a finding too."""
    for check in checks:
        try:
            yield from check()
        except Exception as error:
            area = check.__name__.removeprefix("check_").replace("_", " ")
            text = f"the check itself failed: {reason(error)}"
            yield problem(area, "selftest_failed", text)


def _line(finding: Finding) -> str:
    line = f"{finding.status:<8} {finding.area:<10} {finding.text}\n"
    return f"{line}{'':<19} cure: {finding.cure}\n" if finding.cure else line
