"""What doctor finds, and the cure of each problem it can name."""

from dataclasses import asdict, dataclass

CURES = {
    "python_old": "Install Python 3.11 or newer and make a new virtual environment with it.",
    "package_missing": "Install it with the tested versions: pip install -c constraints.txt . "
    "in the clone.",
    "package_version": "Install a version in that range: pip install -c constraints.txt . "
    "in the clone.",
    "package_broken": "Install it again in a fresh virtual environment: "
    "pip install -c constraints.txt . in the clone.",
    "torch_family": "Install the three together from one index, as built for one another: "
    "pip install -c constraints.txt torch torchvision torchaudio.",
    "decoder_missing": "Install soundfile from its wheel, which brings a whole libsndfile: "
    "pip install --force-reinstall soundfile.",
    "codecs_broken": "Install FFmpeg 4 to 9 with its shared libraries (apt install ffmpeg, or "
    "conda install ffmpeg), or uninstall torchcodec if no m4a, webm or video is to be read.",
    "gpu_unused": "Install a torch built for CUDA and a driver that is new enough for it; "
    "nvidia-smi shows the driver.",
    "gpu_failed": "Start again with nothing else on that GPU, and if it fails again choose another "
    "one by CUDA_VISIBLE_DEVICES or update the driver.",
    "launch_size": "Launch with accelerate launch --multi_gpu --num_processes N, which on a "
    "machine without GPUs starts N processes over gloo, or run accelerate config again.",
    "threads": "Unset OMP_NUM_THREADS, or set it to a number no larger than the cores.",
    "memory_low": "Close other programs, give the container more memory, or lower batch_size.",
    "shm_small": "Start the container with --shm-size=2g (or --ipc=host), or train with workers=0.",
    "disk_full": "Free some space, or choose a run folder on another disk by run=.",
    "folder_unwritable": "Change to a folder that you may write to, or give one by run=.",
    "cache_unwritable": "Make it writable, or name another cache folder by the variable shown.",
    "selftest_failed": "If nothing above is a problem, install the tested versions (pip install -c "
    "constraints.txt .) and report what stands here if it stays.",
}
"""Code of a problem -> its cure, one sentence; docs/troubleshooting.md has one section each."""


@dataclass(frozen=True)
class Finding:
    """One line of doctor's answer.

    Args:
        area: what was looked at.
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

    def as_dict(self) -> dict[str, str]:
        """Plain values, for JSON."""
        return asdict(self)


def ok(area: str, text: str) -> Finding:
    """All is well."""
    return Finding(area, "ok", text)


def note(area: str, text: str) -> Finding:
    """Nothing is wrong, but it is good to know."""
    return Finding(area, "note", text)


def problem(area: str, code: str, text: str) -> Finding:
    """Something will fail; `code` names its cure."""
    return Finding(area, "problem", text, code, CURES[code])


def reason(error: BaseException) -> str:
    """The first line of an error, with its kind."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
