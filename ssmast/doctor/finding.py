"""Findings of doctor, and the cure of each problem."""

from pathlib import Path
from typing import NamedTuple

CONSTRAINTS = Path(__file__).parents[2] / "constraints.txt"


def cures(*, in_checkout: bool) -> dict[str, str]:
    """Code of a problem -> its cure, one sentence; docs/troubleshooting.md has a section for each.

    Args:
        in_checkout: constraints.txt, the tested versions, is there; a wheel has none.
    """
    install = "install ssmast again in a new virtual environment"
    together = "Install torch, torchvision and torchaudio together, from one package index"
    if in_checkout:
        install = "run pip install -c constraints.txt . in the checkout"
        together += ": pip install -c constraints.txt torch torchvision torchaudio"
    return {
        "python_old": "Install Python 3.11 or newer and make a new virtual environment with it.",
        "package_missing": f"To install the tested versions, {install}.",
        "package_version": f"To install a version in that range, {install}.",
        "package_broken": f"To install it again, {install}.",
        "torch_family": f"{together}.",
        "decoder_missing": "Install soundfile from its wheel, which contains libsndfile: "
        "pip install --force-reinstall soundfile.",
        "codecs_broken": "Install FFmpeg 4 to 9 with its shared libraries (apt install ffmpeg, or "
        "conda install ffmpeg), or uninstall torchcodec if no m4a, webm or video is to be read.",
        "gpu_unused": "Install a torch built for CUDA and a driver that is new enough for it; "
        "nvidia-smi shows the driver.",
        "gpu_failed": "Try again with nothing else on that GPU; if it fails again, choose another "
        "one by CUDA_VISIBLE_DEVICES or update the driver.",
        "launch_size": "Launch with accelerate launch --multi_gpu --num_processes N, which without "
        "GPUs starts N processes over gloo, or run accelerate config again.",
        "threads": "Unset OMP_NUM_THREADS, or set it to at most the number of cores.",
        "memory_low": "Close other programs, give the container more memory, or lower batch_size.",
        "shm_small": "Start the container with --shm-size=2g (or --ipc=host), or train with "
        "workers=0.",
        "disk_full": "Free some space, or choose a run folder on another disk by run=.",
        "folder_unwritable": "Change to a folder that you may write to, or give one by run=.",
        "cache_unwritable": "Make it writable, or set the variable shown to another folder.",
        "selftest_failed": f"If nothing above is a problem, {install}; if it still fails, report "
        "this line.",
    }


CURES = cures(in_checkout=CONSTRAINTS.is_file())


class Finding(NamedTuple):
    """One line of doctor's output.

    Attributes:
        area: what was checked.
        status: "ok", "note" or "problem".
        text: what was found.
        code: of a problem, a key of `CURES`.
        cure: of a problem.
    """

    area: str
    status: str
    text: str
    code: str = ""
    cure: str = ""


def ok(area: str, text: str) -> Finding:
    """Nothing is wrong."""
    return Finding(area, "ok", text)


def note(area: str, text: str) -> Finding:
    """Nothing is wrong, but worth knowing."""
    return Finding(area, "note", text)


def problem(area: str, code: str, text: str) -> Finding:
    """Something will fail; `code` is the key of its cure."""
    return Finding(area, "problem", text, code, CURES[code])


def reason(error: BaseException) -> str:
    """The first line of an error, with its kind."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
