"""Every Python snippet of the documents runs, and prints what the page says it prints."""

import re
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from ssmast.audio import LogMel
from ssmast.encoder import Encoder, load_encoder
from ssmast.encoder.graph import onnx_model
from ssmast.model import create_model

DOCS = Path(__file__).parents[1] / "docs"
TEXT = (DOCS / "use.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"^## ([^\n]+)\n(?:(?!^## ).)*?```python\n(.*?)```", TEXT, re.M | re.S)


def snippets(page):
    """(code, what it prints or None) of each block of a page."""
    blocks = r"^```python\n(.*?)^```\n(?:\n```text\n(.*?)^```)?"
    return re.findall(blocks, page.read_text(encoding="utf-8"), re.M | re.S)


PAGES = [page for page in sorted(DOCS.rglob("*.md")) if page.name != "use.md" and snippets(page)]


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
    soundfile.write(place / "clip.wav", np.stack([tone, tone], axis=1), 22050)
    return place


def test_there_is_an_example_of_each():
    names = [name for name, _ in EXAMPLES]
    assert names == [
        "scikit-learn",
        "Fine-tuning in plain PyTorch",
        "A network from random weights",
        "Retrieval",
        "A stream, chunk by chunk",
        "Other people's harnesses",
    ]
    for _, code in EXAMPLES:
        assert len([line for line in code.splitlines() if line.strip()]) <= 18


@pytest.mark.parametrize(("name", "code"), EXAMPLES[:5], ids=[name for name, _ in EXAMPLES[:5]])
def test_the_example_runs(name, code, place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    exec(compile(code, name, "exec"), {})
    said = capsys.readouterr().out
    if name == "scikit-learn":
        assert said == "accuracy 1.00\n"
    elif name.startswith("Fine"):
        assert float(said.split()[1]) < 0.5
    elif name == "A network from random weights":
        assert 0.1 < float(said.split()[1]) < 3  # log 2 is 0.69
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
    exec(compile(dict(EXAMPLES)["Other people's harnesses"], "evar", "exec"), names)
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


def test_every_idea_has_a_snippet():
    for page in (DOCS / "ideas").glob("*.md"):
        assert page in PAGES


def run_or_slow(page):
    """The page as a parameter; exporting a graph for its snippets takes 15 s."""
    needs_graph = any("model.onnx" in code for code, _ in snippets(page))
    marks = [pytest.mark.slow] if needs_graph else []
    return pytest.param(page, marks=marks, id=str(page.relative_to(DOCS)))


@pytest.mark.parametrize("page", [run_or_slow(page) for page in PAGES])
def test_the_snippets_of_the_page_print_what_it_says(page, place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    if page.name == "tutorial.md":
        encoder = load_encoder(place / "encoder")
        encoder.save(place / "encoder", extra={"model.onnx": onnx_model(encoder)})
    names: dict = {}
    for code, printed in snippets(page):
        exec(compile(code, page.name, "exec"), names)
        said = capsys.readouterr().out
        if printed:
            assert said == printed
