"""Make the small encoder folders of the version that is installed; run once before each release.

    python tests/data/make.py          ->  tests/data/encoder_0_2_0/{mast,ast}

`tests/data/test_old_folders.py` then tests for ever that a later version loads them and gives the
same embeddings. A folder that was made is never made again: that is what it is for.
"""

import json
import platform
import sys
from pathlib import Path

import torch
from torch import Tensor

import ssmast
from ssmast.audio import LogMel
from ssmast.encoder import Encoder, load_encoder
from ssmast.model import create_model

RATE = 16000
# Heads of 16 channels: with fewer, no registered model's, matrix products round otherwise.
_TWO_STAGES = {"embed_dim": 16, "depths": (1, 1), "stride_q": ((1, 1), (2, 2))}
# name -> numbers of the model, and pooling; small enough for git (below 100 kB each).
ENCODERS = {
    "mast": ("mast_nano", _TWO_STAGES, "freq+max"),
    "ast": ("ast_nano", {"embed_dim": 16, "depth": 2, "num_heads": 2}, "cls"),
}


def waveform() -> Tensor:
    """3.3 s of a sound (S,) that integer arithmetic alone makes: the same bits on any machine."""
    n = torch.arange(52800, dtype=torch.int64)
    squares = (7 * n * n + 3 * n) % 65521  # residues of squares: a sweep that folds back, over all
    loudness = 1 + (n // 4000) % 4
    return ((squares - 32760) * loudness).float() / 2**18


def make_encoder(model: str, numbers: dict[str, object], pooling: str) -> Encoder:
    """An encoder of random weights, large enough that every layer moves the embedding."""
    generator = torch.Generator().manual_seed(3)
    backbone = create_model(model, num_classes=0, input_size=(32, 96), **numbers)
    for parameter in backbone.parameters():
        torch.nn.init.normal_(parameter, std=0.2, generator=generator)
    info = {"network": "teacher", "version": ssmast.__version__, "clips": 12, "steps": 6}
    settings = {"model": model, "batch_size": 16, "seed": 3, "views": {"frames": 96}}
    info["settings"] = {"method": "ss_mast", **settings}
    log_mel = LogMel(num_mels=32, mean=-7.0, std=4.0)
    encoder = Encoder(backbone, log_mel, pooling=pooling, window_seconds=1.5, info=info)
    return encoder.eval()


def machine() -> dict[str, str]:
    """What decides the bits of a sum on a CPU."""
    return {
        "torch": torch.__version__,
        "processor": f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}",
    }


def main() -> int:
    """Write the folders of this version; refuse to touch those that exist."""
    root = Path(__file__).parent / f"encoder_{ssmast.__version__.replace('.', '_')}"
    if root.exists():
        sys.stderr.write(f"{root} exists; it is kept as it was made\n")
        return 1
    for name, (model, numbers, pooling) in ENCODERS.items():
        make_encoder(model, numbers, pooling).save(root / name)
        encoder = load_encoder(root / name)
        frames, _ = encoder.embed_frames(waveform(), RATE)
        found = {
            "made_on": machine(),
            "embedding": encoder.embed(waveform(), RATE)[0].tolist(),
            "frames": frames[0, ::16].tolist(),
        }
        text = json.dumps(found) + "\n"
        (root / f"{name}.json").write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
