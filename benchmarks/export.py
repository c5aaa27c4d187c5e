"""CPU latency of one clip, waveform to embedding: PyTorch, onnxruntime, onnxruntime in int8.

    python benchmarks/export.py [ENCODER_FOLDER ...] [seconds=10] [rounds=15] [threads=2]

Without a folder: the encoder of the package, and mast_nano and ast_nano with random weights. The
three take turns, so that what else the machine does falls on all alike; the median of the rounds is
told, and what part of PyTorch's it is. Prints Markdown and writes export.json.
"""

import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from ssmast import create_model
from ssmast.audio import LogMel
from ssmast.encoder import Encoder, load_encoder
from ssmast.encoder.graph import (
    OnnxEncoder,
    check_lengths,
    int8_cosines,
    largest_difference,
    onnx_model,
    quantized,
)
from ssmast.weights import DEFAULT


def main(argv: list[str]) -> int:
    settings = {"seconds": 10.0, "rounds": 15, "threads": 2}
    folders = []
    for word in argv:
        key, found, value = word.partition("=")
        if found and key in settings:
            settings[key] = type(settings[key])(value)
        else:
            folders.append(word)
    torch.set_num_threads(int(settings["threads"]))
    encoders = {folder: load_encoder(folder) for folder in folders} or {
        DEFAULT: load_encoder(),
        **{name: _random(name) for name in ("mast_nano", "ast_nano")},
    }
    rows = [{"encoder": name, **_measure(enc, **settings)} for name, enc in encoders.items()]
    print(f"{settings['seconds']:g} s of sound, {settings['threads']} threads, ms (median)\n")
    print("| encoder | PyTorch | onnxruntime | int8 | ONNX difference | int8 cosine, lowest |")
    print("|---|---:|---:|---:|---:|---:|")
    for row in rows:
        times = " | ".join(
            f"{row[key]:.1f} ({row[key] / row['pytorch_ms']:.2f} x)"
            for key in ("pytorch_ms", "onnx_ms", "int8_ms")
        )
        print(
            f"| {row['encoder']} | {times} | {row['difference']:.1e} | {row['cosine_mean']:.4f}, "
            f"{row['cosine_lowest']:.4f} |"
        )
    Path("export.json").write_text(json.dumps({"settings": settings, "rows": rows}, indent=1))
    return 0


def _random(name: str) -> Encoder:
    torch.manual_seed(0)
    backbone = create_model(name, num_classes=0, input_size=(128, 96))
    return Encoder(backbone, LogMel(mean=-8.0, std=4.5)).eval()


def _measure(encoder: Encoder, *, seconds: float, rounds: int, threads: int) -> dict[str, float]:
    model = onnx_model(encoder)
    small = quantized(encoder, model)
    whole_session, small_session = (OnnxEncoder(m, threads=threads) for m in (model, small))
    clip = 0.1 * torch.randn(round(seconds * encoder.sample_rate))
    runs: dict[str, Callable[[], object]] = {
        "pytorch_ms": lambda: encoder.embed_clips([clip]),
        "onnx_ms": lambda: whole_session(clip[None]),
        "int8_ms": lambda: small_session(clip[None]),
    }
    times: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds + 2):  # two to warm up
        for name in np.random.default_rng(number).permutation(list(runs)):
            start = time.perf_counter()
            runs[name]()
            if number >= 2:
                times[name].append(1000 * (time.perf_counter() - start))
    cosines = int8_cosines(encoder, small)
    return {
        **{name: statistics.median(found) for name, found in times.items()},
        "difference": largest_difference(encoder, model, lengths=check_lengths(encoder)),
        "cosine_mean": float(cosines.mean()),
        "cosine_lowest": float(cosines.min()),
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
