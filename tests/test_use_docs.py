"""Every snippet of docs/use.md runs."""

import re
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from ssmast.audio import LogMel
from ssmast.encoder import Encoder
from ssmast.model import create_model

TEXT = (Path(__file__).parents[1] / "docs" / "use.md").read_text(encoding="utf-8")
SNIPPETS = re.findall(r"^## ([^\n]+)\n(?:(?!^## ).)*?```python\n(.*?)```", TEXT, re.M | re.S)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("use")
    torch.manual_seed(1)
    numbers = {"embed_dim": 8, "depths": (1, 1, 1, 1)}
    backbone = create_model("mast_nano", num_classes=0, input_size=(64, 96), **numbers)
    Encoder(backbone, LogMel(num_mels=64, mean=-2.7, std=1.4)).save(place / "encoder")
    time = np.arange(8000) / 16000
    for label, pitch in (("low", 200), ("high", 3000)):
        (place / "sounds" / label).mkdir(parents=True)
        for number in range(6):
            tone = 0.3 * np.sin(2 * np.pi * (pitch + 5 * number) * time)
            soundfile.write(place / "sounds" / label / f"{number}.wav", tone, 16000)
    return place


def test_there_is_an_example_of_each():
    names = [name for name, _ in SNIPPETS]
    assert names == [
        "scikit-learn",
        "Fine-tuning in plain PyTorch",
        "Retrieval",
        "A stream, chunk by chunk",
        "Other people's harnesses",
    ]
    for _, code in SNIPPETS:
        assert len([line for line in code.splitlines() if line.strip()]) <= 18


@pytest.mark.parametrize(("name", "code"), SNIPPETS[:4], ids=[name for name, _ in SNIPPETS[:4]])
def test_the_example_runs(name, code, place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    exec(compile(code, name, "exec"), {})
    said = capsys.readouterr().out
    if name == "scikit-learn":
        assert said == "accuracy 1.00\n"
    elif name.startswith("Fine"):
        assert float(said.split()[1]) < 0.5
    elif name == "Retrieval":
        first, *others = said.splitlines()
        assert first.startswith("1.000")
        assert first.endswith("3.wav")
        assert all("high" in line for line in others)
    else:
        assert len(said.splitlines()) == 4


def test_the_class_for_evar_gives_what_its_base_class_says(place, monkeypatch):
    class BaseAudioRepr(torch.nn.Module):  # the part of evar/ar_base.py that is relied on
        def __init__(self, cfg):
            super().__init__()
            self.cfg = cfg

    evar = types.ModuleType("evar")
    base = types.ModuleType("evar.ar_base")
    base.BaseAudioRepr = BaseAudioRepr
    monkeypatch.setitem(sys.modules, "evar", evar)
    monkeypatch.setitem(sys.modules, "evar.ar_base", base)
    monkeypatch.chdir(place)
    names: dict = {}
    exec(compile(dict(SNIPPETS)["Other people's harnesses"], "evar", "exec"), names)
    model = names["AR_SSMAST"](types.SimpleNamespace(weight_file="encoder", sample_rate=16000))
    batch = 0.1 * torch.randn(3, 20000)
    assert model(batch).shape == (3, model.encoder.dim)
    frames = model.encode_frames(batch)
    assert frames.shape[:2] == (3, model.encoder.frame_dim)
    assert torch.equal(model(batch), model.encoder.embed(batch, 16000))


def test_the_folder_is_what_the_first_snippet_says(place, monkeypatch):
    monkeypatch.chdir(place)
    (first,) = re.findall(r"```python\n(import ssmast, timm.*?)```", TEXT, re.S)
    names: dict = {}
    exec(compile(first, "first", "exec"), names)
    assert names["net"].num_features == names["encoder"].backbone.num_features
