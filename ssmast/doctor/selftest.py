"""Self-tests: decoders, the log-mel, and two steps of real pretraining on the device.

ssmast's own modules are imported inside the functions, since they need packages that may be broken.
"""

import logging
import math
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from ssmast.doctor.finding import Finding, note, ok, problem, reason


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
