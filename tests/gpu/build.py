"""Compiles the stand-in of a CUDA card, and says what of it is missing here.

python -m tests.gpu.build        prints the folder, or why it cannot be built
"""

import contextlib
import hashlib
import importlib.util
import os
import re
import runpy
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
SOURCES = ("fakecuda.c", "fakeblas.c")


def _compiler() -> str | None:
    return next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)


def _headers() -> Path | None:
    """Folder of cuda.h: that of triton's wheel, which comes with every PyTorch built for CUDA."""
    spec = importlib.util.find_spec("triton")
    folders = [Path(spec.origin).parent / "backends/nvidia/include"] if spec and spec.origin else []
    folders += [Path(os.environ.get("CUDA_HOME", "/usr/local/cuda")) / "include"]
    return next((each for each in folders if (each / "cuda_runtime_api.h").is_file()), None)


def _cuda_of_torch() -> str | None:
    """The version of CUDA that PyTorch was built for, read without the seconds of its import."""
    spec = importlib.util.find_spec("torch")
    assert spec is not None
    assert spec.origin is not None
    return runpy.run_path(str(Path(spec.origin).with_name("version.py")))["cuda"]


def missing() -> str:
    """Why the stand-in cannot be built here; empty where it can."""
    headers, built_for = _headers(), _cuda_of_torch()
    if not sys.platform.startswith("linux"):
        return f"the stand-in of a card needs Linux, this is {sys.platform}"
    if built_for is None:
        return "the stand-in of a card needs a PyTorch built for CUDA"
    if _compiler() is None:
        return "the stand-in of a card needs a C compiler: cc, gcc or clang"
    if headers is None:
        return "the stand-in of a card needs CUDA's headers, as triton's wheel has them"
    found = re.search(r"define CUDA_VERSION (\d+)", (headers / "cuda.h").read_text())
    major = built_for.split(".")[0]
    if found is None or str(int(found[1]) // 1000) != major:
        return f"the stand-in of a card needs the headers of CUDA {major}, {headers} has others"
    return ""


def build() -> Path:
    """Folder of libcuda.so.1 and libfakeblas.so, compiled unless these sources were before.

    Raises:
        RuntimeError: if something is missing, or the compiler refuses.
    """
    if why := missing():
        raise RuntimeError(why)
    content = b"".join((HERE / name).read_bytes() for name in (*SOURCES, Path(__file__).name))
    content += str(_headers()).encode()
    folder = ROOT / "build" / "fakecuda" / hashlib.sha256(content).hexdigest()[:16]
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as draft:
        _compile(Path(draft) / "done", compiler=str(_compiler()), headers=str(_headers()))
        with contextlib.suppress(OSError):  # another process was faster
            (Path(draft) / "done").rename(folder)
    return folder


def _compile(folder: Path, *, compiler: str, headers: str) -> None:
    folder.mkdir()
    words = [compiler, "-O1", "-shared", "-fPIC", "-std=gnu17", "-w", f"-I{headers}"]
    cuda, blas = folder / "libcuda.so.1", folder / "libfakeblas.so"
    libraries = ["-lpthread", "-ldl"]
    for line in (
        # By a name of its own: the second library is to find it where the folder comes to lie.
        [*words, str(HERE / "fakecuda.c"), "-o", str(cuda), f"-Wl,-soname,{cuda.name}", *libraries],
        [*words, str(HERE / "fakeblas.c"), "-o", str(blas), str(cuda)],
    ):
        done = subprocess.run(line, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{' '.join(line)} failed: {done.stderr.strip()}")
    (folder / "libnvidia-ml.so.1").symlink_to(cuda.name)


if __name__ == "__main__":
    sys.stdout.write(f"{missing() or build()}\n")
    sys.exit(1 if missing() else 0)
