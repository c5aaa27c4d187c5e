"""A Python on a machine with a card that is not there.

    python -m tests.gpu.run [options] -m ssmast pretrain recipe=smoke steps=2
    python -m tests.gpu.run [options] SCRIPT.py [words]

    processes=2      that many, each with a card of its own, in a group as strict as NCCL's
    cards=2          of the machine, for one process or what it starts; as many as processes
    visible=1        CUDA_VISIBLE_DEVICES; all
    arch=75          compute capability times ten: 75, 80, 89, 90, 100, 120
    gb=23.6          memory of a card
    taken_gb=20      what another program holds of it
    pinned=false     no page-locked memory is had
    emulation=off    nothing takes the kernels' place: the first product of matrices ends the run
    compute=false    shapes, memory and launches alone
    out=FILE.json    what happened: exit status, mixed devices, collectives, cards with memory of
                     the process, waits by line; of process 1 in FILE.json1, and so on

Ends with the program's own exit status; see README.md.
"""

import json
import os
import runpy
import socket
import subprocess
import sys
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.gpu.build import ROOT, build

OPTIONS = (
    "processes", "cards", "visible", "arch", "gb", "taken_gb", "pinned", "emulation", "compute",
    "out", "native",
)  # fmt: skip
SITE = Path(__file__).parent / "site"  # its sitecustomize.py is read by every Python


def command(*words: str, **options: Any) -> tuple[list[str], dict[str, str]]:
    """Words and environment of a process that runs `python *words` with the stand-in."""
    folder = build()
    preloaded = [folder / "libcuda.so.1"]
    if options.get("native"):  # PyTorch calls cuBLAS itself; see measure.py
        preloaded.append(folder / "libfakeblas.so")
    cards = int(options.get("cards", options.get("processes", 1)))
    path = os.environ.get("PYTHONPATH", "").removeprefix(f"{SITE}{os.pathsep}")
    kernels = "counted" if str(options.get("compute", "true")) == "false" else "computed"
    if options.get("emulation") == "off":
        kernels = "off"
    environment = {
        "LD_PRELOAD": " ".join(map(str, preloaded)),
        "LD_LIBRARY_PATH": str(folder),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
        "PYTHONPATH": os.pathsep.join([str(SITE), str(ROOT), *filter(None, [path])]),
        "STAND_IN_KERNELS": kernels,
        "FAKE_CUDA_ARCH": str(options.get("arch", 90)),
        "FAKE_CUDA_GB": str(options.get("gb", 139.8)),
        "FAKE_CUDA_TAKEN_GB": str(options.get("taken_gb", 0)),
        "FAKE_CUDA_DEVICES": str(cards),
        "CUDA_VISIBLE_DEVICES": str(options.get("visible", ",".join(map(str, range(cards))))),
    }
    inside = {"out": options.get("out", "")}
    if kernels == "counted" or options.get("native"):
        environment["FAKE_CUDA_SKIP_COPIES"] = "1"
    if str(options.get("pinned", "true")) == "false":
        environment["FAKE_CUDA_NO_PINNED"] = "1"
    words = ("-m", "tests.gpu.run", f"inside={json.dumps(inside, default=str)}", *words)
    return [sys.executable, *words], {**os.environ, **environment}


def main(argv: list[str]) -> int:
    """Start the processes, and wait for them."""
    options: dict[str, str] = {}
    while argv and argv[0].partition("=")[0] in OPTIONS:
        key, _, value = argv.pop(0).partition("=")
        options[key] = value
    if not argv or (argv[0].startswith("-") and argv[0] != "-m"):
        sys.stdout.write(__doc__ or "")
        return 2
    line, environment = command(*argv, **options)
    size = int(options.get("processes", 1))
    if size == 1:
        return subprocess.run(line, env=environment).returncode
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    group = {"WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size, "MASTER_ADDR": "127.0.0.1"}
    members = []
    for rank in range(size):
        own = {**group, "MASTER_PORT": port, "RANK": rank, "LOCAL_RANK": rank}
        own = {name: str(value) for name, value in own.items()}
        members.append(subprocess.Popen(line, env={**environment, **own}))
    statuses = [member.wait() for member in members]
    return next(filter(None, statuses), 0)


def inside(options: dict[str, Any], words: list[str]) -> int:
    """What the started process does: run the program, and tell of it."""
    import torch  # site/sitecustomize.py enters the mode

    status = _status_of(lambda: _run(words))
    rank = int(os.environ.get("RANK", 0))
    if options["out"]:
        from tests.gpu.emulation import current
        from tests.gpu.group import collectives

        mode, used = current(), []
        if torch.cuda.is_initialized():
            peaks = [torch.cuda.max_memory_reserved(i) for i in range(torch.cuda.device_count())]
            used = [number for number, peak in enumerate(peaks) if peak]
        waits = Counter((e.line, e.kind) for e in mode.events if e.waits)
        Path(f"{options['out']}{rank or ''}").write_text(
            json.dumps(
                {
                    "status": status,
                    "operations": mode.num_ops,
                    "collectives": collectives,
                    "cards": used,
                    "mixed": [f"{name} at {line}" for name, line in mode.mixed],
                    "waits": {f"{line} {kind}": n for (line, kind), n in waits.most_common()},
                },
                indent=1,
            )
        )
    return status


def _run(words: list[str]) -> None:
    if words[0] == "-m":
        sys.argv = words[1:]
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = words
        sys.path.insert(0, str(Path(words[0]).resolve().parent))
        runpy.run_path(words[0], run_name="__main__")


def _status_of(call: Callable[[], None]) -> int:
    try:
        call()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except Exception:
        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    if sys.argv[1:2] and sys.argv[1].startswith("inside="):
        status = inside(json.loads(sys.argv[1][len("inside=") :]), sys.argv[2:])
        # Not through the end of the interpreter: PyTorch's threads and the stand-in's library end
        # there in any order, and now and then one aborts ("terminate called without an active
        # exception"), after all work is done.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(main(sys.argv[1:]))
