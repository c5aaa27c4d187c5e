"""Ten seconds of the real thing: sounds decoded, log-mel, one step, checkpoint, encoder folder.

ssmast's own parts are imported inside, for they need packages that may be broken.
"""

import logging
import math
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ssmast.doctor.finding import Finding, note, ok, problem, reason

_SMALL = {"embed_dim": 8, "depths": (1, 1, 1, 1), "input_size": (64, 96)}


def check_decoders() -> Iterator[Finding]:
    """Which formats come back as the tone that was written."""
    try:
        from ssmast.audio.encode import try_formats

        found = try_formats()
    except Exception as error:
        yield note("decoders", f"not tried, since ssmast.audio does not load ({reason(error)})")
        return
    for name, why in found.items():
        if why:
            yield problem("decoders", "decoder_missing", f"{name} does not decode here: {why}")
    working = [name for name, why in found.items() if not why]
    if working:
        yield ok("decoders", f"a tone came back from {', '.join(working)}")


def check_pieces() -> Iterator[Finding]:
    """The pieces of a run, each for itself."""
    for what, test in PIECES.items():
        try:
            with tempfile.TemporaryDirectory(prefix="ssmast-doctor-") as folder:
                said = test(Path(folder))
        except Exception as error:
            yield problem("self-test", "selftest_failed", f"{what} failed: {reason(error)}")
        else:
            yield ok("self-test", f"{what}: {said}")


def log_mel_of_a_sine(folder: Path) -> str:
    """A sine on a bin k of a Hann transform has the amplitudes N/4 at k and N/8 beside it.

    Raises:
        ArithmeticError: if the log-mel is another one.
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


def one_step(folder: Path) -> str:
    """Forward, backward and one optimiser step of a tiny MAST, on the GPU too if there is one.

    Raises:
        ArithmeticError: if a gradient is missing or not finite, or the loss does not fall.
    """
    import torch

    said = []
    for device in ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]:
        before, after = _losses(torch, device)
        if not after < before:
            raise ArithmeticError(f"on {device} one step took the loss from {before} to {after}")
        said.append(f"loss {before:.4f} -> {after:.4f} on {device}")
    return ", ".join(said)


def _losses(torch: Any, device: str) -> tuple[float, float]:
    net = _tiny(torch, num_classes=4).to(device).train()
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-3)
    generator = torch.Generator().manual_seed(0)
    log_mels = torch.randn(4, 1, 64, 96, generator=generator).to(device)
    labels = torch.arange(4, device=device)
    before = torch.nn.functional.cross_entropy(net(log_mels), labels)
    before.backward()
    gradients = [parameter.grad for parameter in net.parameters()]
    if any(each is None or not bool(each.isfinite().all()) for each in gradients):
        raise ArithmeticError(f"on {device} a parameter has no finite gradient")
    optimizer.step()
    with torch.no_grad():
        return float(before), float(torch.nn.functional.cross_entropy(net(log_mels), labels))


def pretraining(folder: Path) -> str:
    """Two steps of `ssmast pretrain` itself, on the GPU if there is one, with all that it writes.

    Raises:
        ArithmeticError: if a loss is not finite.
    """
    import torch

    from ssmast.audio import write_synthetic_corpus
    from ssmast.training.metrics_log import read_metrics
    from ssmast.training.pretrain import main

    write_synthetic_corpus(folder / "clips", num_clips=16, seed=0)
    log = logging.getLogger("ssmast")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        main(
            [
                "recipe=smoke", f"data={folder / 'clips'}", f"run={folder / 'run'}", "steps=2",
                "batch_size=4", "log_every=1", "views.frames=64", "front_end.num_mels=32",
                "front_end.stats_clips=8", "loss.queue_size=8", "tensorboard=false",
            ]
        )  # fmt: skip
    finally:
        log.setLevel(level)
    losses = [row["loss"] for row in read_metrics(folder / "run" / "metrics.jsonl")]
    if len(losses) != 2 or not all(map(math.isfinite, losses)):
        raise ArithmeticError(f"two steps of pretraining gave the losses {losses}")
    return f"two steps and an encoder on {'cuda' if torch.cuda.is_available() else 'cpu'}"


def checkpoint_and_back(folder: Path) -> str:
    """Write a checkpoint as training does and read it back.

    Raises:
        ArithmeticError: if a tensor is not what was written.
    """
    import torch

    from ssmast.training.checkpoint import load_checkpoint, save_checkpoint

    written = {"network": _tiny(torch, num_classes=4).state_dict()}
    path = save_checkpoint(folder, 1, tensors=written, state={}, keep=1)
    _, read = load_checkpoint(path)
    if not _same(torch, read["network"], written["network"]):
        raise ArithmeticError("a checkpoint came back with other weights")
    return f"{len(written['network'])} tensors came back bit for bit"


def encoder_and_back(folder: Path) -> str:
    """Save an encoder folder, load it, and embed the same sound with both.

    Raises:
        ArithmeticError: if weights or embeddings differ.
    """
    import torch

    from ssmast.audio import LogMel
    from ssmast.encoder import Encoder, load_encoder

    encoder = Encoder(_tiny(torch, num_classes=0), LogMel(num_mels=64, mean=-7.0, std=4.0))
    encoder.save(folder / "encoder")
    loaded = load_encoder(folder / "encoder")
    sound = torch.sin(torch.arange(16000) / 7.0)
    same = torch.equal(encoder.embed(sound, 16000), loaded.embed(sound, 16000))
    if not same or not _same(torch, loaded.state_dict(), encoder.state_dict()):
        raise ArithmeticError("an encoder folder gave other embeddings than the encoder")
    return "saved, loaded, bit-equal"


def _tiny(torch: Any, *, num_classes: int) -> Any:
    from ssmast.model import create_model

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return create_model("mast_nano", num_classes=num_classes, **_SMALL)


def _same(torch: Any, left: dict[str, Any], right: dict[str, Any]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


PIECES: dict[str, Callable[[Path], str]] = {
    "log-mel": log_mel_of_a_sine,
    "training step": one_step,
    "pretraining": pretraining,
    "checkpoint": checkpoint_and_back,
    "encoder folder": encoder_and_back,
}
