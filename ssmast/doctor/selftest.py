"""Self-tests: decoders, the log-mel, and two steps of real pretraining on the device.

ssmast's own modules are imported inside the functions, since they need packages that may be broken.
"""

import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from ssmast.doctor.finding import Finding, note, ok, problem, reason

_STEPS, _BATCH = 2, 4


def check_decoders() -> Iterator[Finding]:
    """Which formats decode to the tone that was encoded."""
    try:
        from ssmast.audio import try_formats

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


def two_steps_of_pretraining(folder: Path) -> str:
    """Pretrain as `ssmast pretrain` does, in a process of its own, on the device it would use.

    Short clips made here, two steps, the picture of views, checkpoint, encoder folder and report.

    Raises:
        ArithmeticError: if a loss is not finite, or the encoder's embedding is not.
        ChildProcessError: if it fails, with its last line.
        FileNotFoundError: if it left no picture or no encoder.
    """
    import torch

    from ssmast.encoder import load_encoder

    run, device = folder / "run", "cuda" if torch.cuda.is_available() else "cpu"
    _pretrain(folder, run=run)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows if "loss" in row]
    if len(losses) != _STEPS or not all(map(math.isfinite, losses)):
        raise ArithmeticError(f"on {device} {_STEPS} steps gave the losses {losses}")
    if not (run / "views.png").is_file():
        raise FileNotFoundError("views.png was not drawn")
    embedding = load_encoder(run / "encoder").embed(torch.sin(torch.arange(16000) / 7.0), 16000)
    if not bool(embedding.isfinite().all()):
        raise ArithmeticError("the encoder gives numbers that are not finite")
    shown = ", ".join(f"{loss:.3f}" for loss in losses)
    return f"{_STEPS} steps on {device}, loss {shown}; views, checkpoint, encoder and report"


def _pretrain(folder: Path, *, run: Path) -> None:
    import torch

    from ssmast.audio.encode import encode_sound

    (folder / "clips").mkdir()
    for number in range(_BATCH):
        tone = 0.3 * torch.sin(torch.arange(24000) * (0.05 + 0.02 * number)).numpy()
        sound = encode_sound(tone, sample_rate=16000, codec="flac")
        (folder / "clips" / f"{number}.flac").write_bytes(sound)
    words = [
        "recipe=smoke", f"data={folder / 'clips'}", f"run={run}", f"steps={_STEPS}", "log_every=1",
        f"batch_size={_BATCH}", "loss.queue_size=0", f"show_views={_BATCH}", "cache=off",
        f"front_end.stats_clips={_BATCH}", "workers=0", "tensorboard=false",
    ]  # fmt: skip
    paths = [str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
    done = subprocess.run(
        [sys.executable, "-m", "ssmast", "pretrain", *words],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        said = done.stderr.strip().splitlines() or ["it said nothing"]
        raise ChildProcessError(f"`ssmast pretrain` ended with {done.returncode}: {said[-1]}")


SELF_TESTS: dict[str, Callable[[Path], str]] = {
    "log-mel": log_mel_of_a_sine,
    "pretraining": two_steps_of_pretraining,
}
