"""A small labelled set of tones, and an encoder that has heard nothing."""

import csv
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from ssmast.audio import LogMel
from ssmast.encoder import Encoder
from ssmast.model import create_model

PITCHES = {"low": 200.0, "middle": 800.0, "high": 3000.0}


def write_set(
    folder: Path, *, num_clips: int = 48, seed: int = 0, bad: int = 0, seconds: float = 0.2
) -> Path:
    """metadata.csv with label, split, fold, speaker; the last `bad` files hold no sound."""
    folder.mkdir(parents=True)
    generator = np.random.default_rng(seed)
    rows = []
    for i in range(num_clips):
        label = list(PITCHES)[i % 3]
        time = np.arange(int(16000 * generator.uniform(seconds, 2 * seconds))) / 16000
        tone = 0.3 * np.sin(2 * np.pi * PITCHES[label] * generator.uniform(0.9, 1.1) * time)
        tone = tone + 0.05 * generator.standard_normal(len(time))
        if i >= num_clips - bad:
            (folder / f"{i:03d}.wav").write_bytes(b"")
        else:
            soundfile.write(folder / f"{i:03d}.wav", tone.astype(np.float32), 16000)
        part = ("train", "train", "valid", "test")[i // 3 % 4]
        rows.append((f"{i:03d}.wav", label, part, str(1 + i // 3 % 3), f"s{i // 3 % 4}"))
    with (folder / "metadata.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("path", "label", "split", "fold", "speaker"))
        writer.writerows(rows)
    return folder


@pytest.fixture(scope="session")
def sets(tmp_path_factory) -> Path:
    """A folder with two labelled sets and other things."""
    data = tmp_path_factory.mktemp("sets")
    write_set(data / "tones")
    write_set(data / "more_tones", seed=1, num_clips=36)
    (data / "notes").mkdir()
    (data / "pool").mkdir()
    (data / "pool" / "metadata.csv").write_text("shard,path\n")
    return data


@pytest.fixture(scope="session")
def tiny_encoder() -> Encoder:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        backbone = create_model(
            "mast_nano", num_classes=0, input_size=(64, 96), embed_dim=8, depths=(1, 1, 1, 1)
        )
    return Encoder(backbone, LogMel(num_mels=64, mean=-7.0, std=4.0))


@pytest.fixture(scope="session")
def encoder_folder(tiny_encoder, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("encoders") / "encoder"
    tiny_encoder.save(folder)
    return folder
