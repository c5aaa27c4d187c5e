"""The machine, its packages, and whether they work: decoders, a log-mel, two steps of training."""

import importlib
import logging
import math
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from ssmast.command import num_cores
from ssmast.doctor.finding import Finding, note, ok, problem, reason

SHARED_MEMORY = Path("/dev/shm")  # noqa: S108  where the loader's processes pass their batches
_NVIDIA = Path("/dev/nvidiactl")
_GIB = 1 << 30
_LEAST_SHARED = 128 << 20  # batches of two workers; Docker gives 64 MB
_LEAST_DISK, _GOOD_DISK = _GIB, 10 * _GIB
_LEAST_MEMORY, _GOOD_MEMORY = _GIB, 4 * _GIB


def check_cores() -> Iterator[Finding]:
    """CPU cores that this process may use, and what OMP_NUM_THREADS makes of them."""
    cores = num_cores()
    asked = os.environ.get("OMP_NUM_THREADS", "")
    shown = f"{cores} CPU core(s) of {os.cpu_count()} may be used"
    if not asked:
        yield ok("cores", f"{shown}; OMP_NUM_THREADS is not set")
    elif not asked.isdigit() or not 1 <= int(asked) <= cores:
        yield problem("cores", "threads", f"{shown}, but OMP_NUM_THREADS is {asked!r}")
    elif int(asked) < cores:
        yield note("cores", f"{shown}; OMP_NUM_THREADS={asked}, which training itself overrides")
    else:
        yield ok("cores", f"{shown}; OMP_NUM_THREADS={asked}")


_PRECISIONS = {
    "bf16": "trains in bfloat16",
    "fp16": "trains in float16 with scaled gradients, for it emulates bfloat16",
    "fp32": "trains in float32, for it has no fast half precision",
}


def check_gpus() -> Iterator[Finding]:
    """The GPUs that torch sees, whether each computes, and how to train on them."""
    try:
        torch = importlib.import_module("torch")
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    except Exception as error:
        yield note("gpu", f"not checked: torch cannot be used ({reason(error)})")
        return
    if not count:
        if _NVIDIA.exists():
            built = torch.version.cuda or "no CUDA"
            text = f"an NVIDIA driver is here, but torch (built for {built}) sees no GPU"
            yield problem("gpu", "gpu_unused", text)
        else:
            apple = torch.backends.mps.is_available()
            kind = "Apple's is not used" if apple else "none"
            yield note("gpu", f"{kind}; training runs on the CPU{_faster_in_bf16(torch)}")
    for number in range(count):
        about = torch.cuda.get_device_properties(number)
        shown = f"{number}: {about.name}, {about.total_memory / _GIB:.0f} GiB"
        try:
            ones = torch.ones(64, 64, device=f"cuda:{number}")
            right = float((ones @ ones).sum()) == 64**3
        except Exception as error:
            yield problem("gpu", "gpu_failed", f"{shown}, cannot compute: {reason(error)}")
        else:
            has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
            bf16 = _PRECISIONS["bf16" if has_bf16 else "fp16" if about.major == 7 else "fp32"]
            wrong = problem("gpu", "gpu_failed", f"{shown}, multiplies wrongly")
            yield ok("gpu", f"{shown}, {bf16}") if right else wrong
    if count > 1:
        command = f"accelerate launch --multi_gpu --num_processes {count} -m ssmast pretrain"
        yield note("gpu", f"to train on all of them: {command}")
    yield from check_launch(count)


def _faster_in_bf16(torch: Any) -> str:
    """What to say of a CPU that multiplies bfloat16 in hardware; others only emulate it."""
    has = getattr(torch.cpu, "get_capabilities", dict)()  # older torch does not tell
    if any(has.get(name) for name in ("amx_bf16", "avx512_bf16", "sve_bf16", "bf16")):
        return ", which multiplies bfloat16: precision=bf16 trains faster (docs/gpus.md)"
    return ""


def check_launch(gpus: int) -> Iterator[Finding]:
    """Whether `accelerate launch` would start the processes that `accelerate config` saved."""
    home = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    file = home / "accelerate" / "default_config.yaml"
    try:
        saved = importlib.import_module("yaml").safe_load(file.read_text(encoding="utf-8")) or {}
        wanted = int(saved.get("num_processes") or 1)
    except FileNotFoundError:
        return
    except Exception as error:
        yield problem("launch", "launch_size", f"{file} cannot be read: {reason(error)}")
        return
    shown = f"{file} asks for {wanted} process(es)"
    if wanted > 1 and (saved.get("use_cpu") or saved.get("distributed_type") == "NO"):
        yield problem("launch", "launch_size", f"{shown} with settings that start only one")
    elif gpus and wanted > gpus * int(saved.get("num_machines") or 1):
        yield problem("launch", "launch_size", f"{shown}, but there are {gpus} GPU(s)")
    else:
        yield ok("launch", shown)


def check_memory() -> Iterator[Finding]:
    """Free memory, and the shared memory that loader processes need."""
    try:
        free = importlib.import_module("psutil").virtual_memory().available
    except Exception as error:
        yield note("memory", f"not checked: {reason(error)}")
    else:
        shown = f"{free / _GIB:.1f} GiB available"
        yield _room("memory", "memory_low", free, _LEAST_MEMORY, _GOOD_MEMORY, shown)
    if SHARED_MEMORY.is_dir():
        free = shutil.disk_usage(SHARED_MEMORY).free
        shown = f"{free / (1 << 20):.0f} MB free in {SHARED_MEMORY}"
        why = f"{shown}: processes that read audio would die of a bus error"
        yield _room("memory", "shm_small", free, _LEAST_SHARED, _LEAST_SHARED, shown, why)


def _room(
    area: str, code: str, free: float, least: float, good: float, shown: str, why: str = ""
) -> Finding:
    """Whether as much is free as is needed, and as is comfortable."""
    if free < least:
        return problem(area, code, f"only {why or shown}")
    return ok(area, shown) if free >= good else note(area, shown)


def check_folders() -> Iterator[Finding]:
    """Space and permission where runs are written: the current folder and runs/."""
    here = Path.cwd()
    for folder in (here, here / "runs"):
        if not folder.is_dir() and folder != here:
            continue
        why = _unwritable(folder)
        if why:
            yield problem("folders", "folder_unwritable", f"{folder} cannot be written: {why}")
            continue
        free = shutil.disk_usage(folder).free
        shown = f"{folder} can be written, {free / _GIB:.1f} GiB free"
        why = f"{free / _GIB:.2f} GiB free at {folder}"
        yield _room("folders", "disk_full", free, _LEAST_DISK, _GOOD_DISK, shown, why)


def check_caches() -> Iterator[Finding]:
    """Folders in which weights from the Hub and indexes of remote corpora are kept."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    for variable, folder in (
        ("HF_HOME", Path(os.environ.get("HF_HOME") or base / "huggingface")),
        ("TORCH_HOME", Path(os.environ.get("TORCH_HOME") or base / "torch")),
        ("XDG_CACHE_HOME", base / "ssmast"),
    ):
        place = folder
        while not place.exists() and place != place.parent:
            place = place.parent  # the nearest one that exists decides
        why = _unwritable(place)
        if why:
            text = f"{folder} ({variable}) cannot be written: {why}"
            yield problem("caches", "cache_unwritable", text)
        else:
            yield ok("caches", f"{folder} ({variable})")


def _unwritable(folder: Path) -> str:
    """Why no file can be made in a folder; empty if one can. Tried, for permissions can lie."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"x")
    except OSError as error:
        return error.strerror or reason(error)
    return ""


# -- packages --------------------------------------------------------------------------------------

# Packages whose module has another name; the part of lightly that is used imports torchvision.
_MODULES = {
    "faiss-cpu": "faiss",
    "scikit-learn": "sklearn",
    "pyyaml": "yaml",
    "lightly": "lightly.loss",
}
_EXTRAS = {
    "codecs": ("torchcodec", "m4a, aac, webm, wma and the sound tracks of videos"),
    "onnx": ("onnx", "ssmast export onnx=true"),
    "ray": ("ray", "engine=ray of ssmast prepare and embed"),
    "umap": ("umap-learn", "the picture of ssmast cluster"),
}
_PYTHON = (3, 11)


def check_python() -> Iterator[Finding]:
    """The interpreter."""
    version = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info[:2] < _PYTHON:
        wanted = ".".join(map(str, _PYTHON))
        yield problem("python", "python_old", f"ssmast needs Python {wanted}, this is {version}")
    else:
        yield ok("python", f"{version} at {sys.executable}")


def requirements() -> dict[str, str]:
    """Package -> range of versions, as pyproject.toml declares what ssmast always needs.

    Raises:
        PackageNotFoundError: if ssmast runs from a folder without being installed.
    """
    from packaging.requirements import Requirement

    wanted = [Requirement(line) for line in metadata.requires("ssmast") or []]
    return {
        each.name: str(each.specifier)
        for each in wanted
        if each.marker is None or each.marker.evaluate({"extra": ""})
    }


def check_packages() -> Iterator[Finding]:
    """Every package that ssmast always needs: its version, and whether it can be imported."""
    try:
        wanted = requirements()
    except metadata.PackageNotFoundError:
        text = "ssmast is not installed but used from a folder, so its requirements are not known"
        yield problem("packages", "package_missing", text)
        return
    except ImportError as error:  # packaging itself
        yield problem("packages", "package_missing", f"versions cannot be read: {reason(error)}")
        return
    good = []
    for name, versions in sorted(wanted.items()):
        fault = _fault(name, versions)
        if fault is None:
            good.append(f"{name} {metadata.version(name)}")
        else:
            yield fault
    if good:
        yield ok("packages", ", ".join(good))


def _fault(name: str, versions: str) -> Finding | None:
    from packaging.specifiers import SpecifierSet

    try:
        found = metadata.version(name)
    except metadata.PackageNotFoundError:
        return problem("packages", "package_missing", f"{name} is not installed")
    if not SpecifierSet(versions).contains(found, prereleases=True):
        text = f"{name} is {found}, ssmast needs {versions}"
        return problem("packages", "package_version", text)
    if name in _CALLS:
        return None  # check_torch_family imports and uses them together
    try:
        importlib.import_module(_MODULES.get(name, name.replace("-", "_")))
    except Exception as error:
        text = f"{name} {found} cannot be imported: {reason(error)}"
        return problem("packages", "package_broken", text)
    return None


def check_torch_family() -> Iterator[Finding]:
    """Torch, torchvision and torchaudio: do they import together, and does a call of each work?

    Builds for different CUDA versions often work together, so version strings decide nothing.
    """
    loaded: dict[str, Any] = {}
    for name, call in _CALLS.items():
        try:
            loaded[name] = importlib.import_module(name)
        except Exception as error:
            code = "torch_family"
            if name == "torch":
                missing = isinstance(error, ModuleNotFoundError) and error.name == "torch"
                code = "package_missing" if missing else "package_broken"
            yield problem("torch", code, f"{name} cannot be imported: {reason(error)}")
            if name == "torch":
                return
            continue
        try:
            call(loaded)
        except Exception as error:
            text = f"{name} does not work ({_versions(loaded)}): {reason(error)}"
            yield problem("torch", "torch_family", text)
            return
    if len(loaded) == len(_CALLS):
        yield ok("torch", _versions(loaded))


def _versions(loaded: dict[str, Any]) -> str:
    return ", ".join(f"{name} {module.__version__}" for name, module in loaded.items())


def _nms(loaded: dict[str, Any]) -> None:
    """Torchvision's compiled part."""
    boxes = loaded["torch"].tensor([[0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 1.0, 0.9]])
    loaded["torchvision"].ops.nms(boxes, boxes[:, 3], 0.5)


_CALLS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "torch": lambda loaded: loaded["torch"].tensor([1.0]),
    "torchvision": _nms,
    "torchaudio": lambda loaded: loaded["torchaudio"].functional.melscale_fbanks(
        n_freqs=9, f_min=0.0, f_max=4000.0, n_mels=2, sample_rate=8000
    ),
}


def check_extras() -> Iterator[Finding]:
    """Optional packages: installed or not, and what they are for."""
    for extra, (package, purpose) in _EXTRAS.items():
        try:
            found = metadata.version(package)
        except metadata.PackageNotFoundError:
            text = f"{extra}: not installed; pip install 'ssmast[{extra}]' for {purpose}"
            yield note("extras", text)
            continue
        if package == "torchcodec":
            try:
                importlib.import_module("torchcodec.decoders")
            except Exception as error:
                text = f"torchcodec {found} cannot load FFmpeg ({reason(error)})"
                yield problem("extras", "codecs_broken", text)
                continue
        yield ok("extras", f"{extra}: {package} {found}, for {purpose}")


# -- decoders and two steps of pretraining ---------------------------------------------------------
#
# ssmast's own modules are imported inside the functions: they need packages that may be broken.


def check_decoders() -> Iterator[Finding]:
    """Which formats decode to the tone that was encoded."""
    try:
        from ssmast.audio.encode import try_formats

        found = try_formats()
    except Exception as error:
        yield note("decoders", f"not tried: ssmast.audio cannot be imported ({reason(error)})")
        return
    for name, why in found.items():
        if why:
            yield problem("decoders", "decoder_missing", f"{name} does not decode here: {why}")
    working = [name for name, why in found.items() if not why]
    if working:
        yield ok("decoders", f"{', '.join(working)} decode correctly")


def check_self_tests() -> Iterator[Finding]:
    """The self-tests, one after the other."""
    for what, test in SELF_TESTS.items():
        try:
            with tempfile.TemporaryDirectory(prefix="ssmast-doctor-") as folder:
                said = test(Path(folder))
        except Exception as error:
            yield problem("self-test", "selftest_failed", f"{what} failed: {reason(error)}")
        else:
            yield ok("self-test", f"{what}: {said}")


def log_mel_of_a_sine(folder: Path) -> str:
    """A sine at bin k of a Hann window has the amplitudes N/4 at k and N/8 at k - 1 and k + 1.

    Raises:
        ArithmeticError: if its log-mel differs.
    """
    import torch

    from ssmast.audio import LogMel
    from ssmast.audio.mel import EPS

    log_mel, k = LogMel(), 64
    size = log_mel.n_fft
    sine = torch.sin(2 * math.pi * k * torch.arange(16 * size, dtype=torch.float64) / size)
    middle = log_mel.log_mel(sine[None])[0, 0, :, 20:-20]  # frames that no edge touches
    filters = log_mel.filterbank.double()
    power = filters[:, k] * (size / 4) ** 2 + filters[:, [k - 1, k + 1]].sum(1) * (size / 8) ** 2
    error = float((middle - (power + EPS).log()[:, None]).abs().max())
    if not error < 1e-3:
        raise ArithmeticError(f"the log-mel of a sine is off by {error:.3g}")
    return f"a sine is right to {error:.0e}"


def pretraining(folder: Path) -> str:
    """Two steps of `ssmast pretrain` on the device it would use, and all files that it writes.

    Raises:
        ArithmeticError: if a loss is not finite, or the encoder's embedding is not.
        FileNotFoundError: if it left no picture of views or no encoder.
    """
    import torch

    from ssmast.audio import write_synthetic_corpus
    from ssmast.encoder import load_encoder
    from ssmast.training.metrics_log import read_metrics
    from ssmast.training.pretrain import main

    device, run = "cuda" if torch.cuda.is_available() else "cpu", folder / "run"
    write_synthetic_corpus(folder / "clips", num_clips=16, seed=0)
    words = [
        "recipe=smoke", f"data={folder / 'clips'}", f"run={run}", "steps=2", "log_every=1",
        "batch_size=4", "views.frames=64", "front_end.num_mels=32", "front_end.stats_clips=8",
        "loss.queue_size=8", "tensorboard=false",
    ]  # fmt: skip
    log = logging.getLogger("ssmast")
    level = log.level
    log.setLevel(logging.CRITICAL)
    try:
        main(words)
    finally:
        log.setLevel(level)
    losses = [row["loss"] for row in read_metrics(run / "metrics.jsonl")]
    if len(losses) != 2 or not all(map(math.isfinite, losses)):
        raise ArithmeticError(f"on {device} two steps gave the losses {losses}")
    if not (run / "views.png").is_file():
        raise FileNotFoundError("views.png was not drawn")
    embedding = load_encoder(run / "encoder").embed(torch.sin(torch.arange(16000) / 7.0), 16000)
    if not bool(embedding.isfinite().all()):
        raise ArithmeticError("the encoder's embedding is not finite")
    shown = ", ".join(f"{loss:.3f}" for loss in losses)
    return f"two steps on {device}, loss {shown}; views, checkpoint, encoder and report"


SELF_TESTS: dict[str, Callable[[Path], str]] = {
    "log-mel": log_mel_of_a_sine,
    "pretraining": pretraining,
}
