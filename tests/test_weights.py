"""The encoder that comes with the package: whole, licensed, and taken where none is named."""

import csv
from collections import Counter

import numpy as np
import pytest
import timm
import torch
import yaml

import ssmast
from ssmast.encoder import load_encoder
from ssmast.evaluation.suite import ProbeConfig, run_suite
from ssmast.retrieval import embed_files, index, search
from ssmast.settings import UsageError
from ssmast.training.finetune.config import FinetuneConfig
from ssmast.training.finetune.setup import set_up
from ssmast.training.init_weights import find_weights
from ssmast.weights import FOLDER

from .sets import write_set

# No NC, ND, SA or ODbL: what is trained on it may be used for anything.
PERMISSIVE = ("CC0", "CC BY", "Apache-2.0", "MIT", "BSD-3-Clause", "Unlicense", "public domain")
RATE = 16000


def _table(name: str) -> list[dict[str, str]]:
    with open(FOLDER.parent / name, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _noise(samples: int, seed: int = 0) -> torch.Tensor:
    return 0.1 * torch.randn(samples, generator=torch.Generator().manual_seed(seed))


# -- what is in the folder -------------------------------------------------------------------------


def test_it_is_small_and_its_card_says_what_the_hub_asks_for():
    assert sum(file.stat().st_size for file in FOLDER.iterdir()) < 8e6
    card = (FOLDER / "README.md").read_text(encoding="utf-8")
    facts = yaml.safe_load(card.split("---")[1])
    assert facts["license"] == "apache-2.0"
    assert "sources.csv" in card


def test_every_clip_is_of_a_source_whose_licence_allows_it():
    sources = {row["source"]: row for row in _table("sources.csv")}
    clips = _table("clips.csv")
    counts = Counter(row["source"] for row in clips)
    assert {key: int(row["clips"]) for key, row in sources.items()} == counts
    for row in sources.values():
        licence = row["licence"]
        assert licence.startswith(PERMISSIVE), licence
        assert not any(word in licence for word in ("-NC", "-SA", "-ND", "ODbL")), licence
        assert row["attribution"]
    for column in ("clip", "sha256"):
        assert len({row[column] for row in clips}) == len(clips)


# -- taken where no encoder is named ---------------------------------------------------------------


def test_it_is_the_encoder_where_none_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    encoder, clip = ssmast.load_encoder(), _noise(20000)
    for other in ("default", FOLDER):
        assert torch.equal(load_encoder(other).embed(clip, RATE), encoder.embed(clip, RATE))
    encoder.save("default")  # what exists under that name is taken
    assert load_encoder("default").sha256 == encoder.sha256
    (tmp_path / "default" / "checksums.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"it has no checksums\.json"):
        load_encoder("default")


def test_embed_index_and_search_need_no_encoder(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    data = write_set(tmp_path / "tones", num_clips=12)
    assert embed_files.main([f"data={data}", "out=e.npz"]) == 0
    with np.load("e.npz") as found:
        assert found["embeddings"].shape == (12, load_encoder().dim)
        assert str(found["names"][3]) == "003.wav"
    assert index.main(["embeddings=e.npz", "out=index"]) == 0
    capsys.readouterr()
    assert search.main([str(data / "003.wav"), "index=index", "top=1"]) == 0
    assert "003.wav" in capsys.readouterr().out


def test_a_probe_scores_it(tmp_path):
    data = write_set(tmp_path / "sets" / "tones", num_clips=48).parent
    words = {"protocol": "few_shot", "shots": 2, "baselines": "false"}
    config = ProbeConfig(data=str(data), out=str(tmp_path / "out"), **words)
    (result,) = run_suite(config)
    assert result.encoder_sha256 == load_encoder().sha256
    assert len(result.scores) == 20
    assert result.mean > 0.6  # of three tones, chance is a third
    assert (tmp_path / "out" / "tones.few_shot-2.json").is_file()
    with pytest.raises(UsageError, match="protocol linear draws no clips"):
        ProbeConfig(data="x", shots=4)
    with pytest.raises(UsageError, match="protocol knn has no epochs to set"):
        ProbeConfig(data="x", protocol="knn", epochs=5)


# -- as initial weights ----------------------------------------------------------------------------


@pytest.mark.parametrize("make", [ssmast.create_model, timm.create_model])
def test_pretrained_means_these_weights(make):
    ours, x = load_encoder().backbone, torch.randn(2, 1, 64, 128)
    model = make("mast_nano", pretrained=True, num_classes=0).eval()
    wanted = ours.embed(x, layers="stages", pooling="mean")
    assert torch.equal(model.embed(x, layers="stages", pooling="mean"), wanted)
    longer = make("mast_nano", pretrained=True, num_classes=7, input_size=(64, 256)).eval()
    assert longer(torch.randn(1, 1, 64, 256)).shape == (1, 7)
    # At its own size a model of longer inputs computes what the encoder does there.
    x = torch.randn(1, 1, 64, 256)
    wanted = ours.embed(x, layers="last", pooling="mean")
    torch.testing.assert_close(longer.embed(x, layers="last", pooling="mean"), wanted)
    assert "mast_nano" in timm.list_models("mast_*", pretrained=True)


def test_fresh_weights_stay_fresh():
    model = timm.create_model("mast_nano", num_classes=0, input_size=(64, 128))
    assert not torch.equal(model.norm.weight, load_encoder().backbone.norm.weight)


def test_fine_tuning_begins_with_it_and_says_so(tmp_path, caplog):
    data = str(write_set(tmp_path / "tones", num_clips=24))
    with caplog.at_level("INFO", logger="ssmast.training.finetune.setup"):
        setup = set_up(FinetuneConfig(data=data))
    assert "init=default, the encoder that comes with the package" in caplog.text
    assert (setup.config.init, setup.config.model) == ("default", "mast_nano")
    assert setup.encoder.sha256 == load_encoder().sha256
    assert setup.config.front_end.num_mels == load_encoder().log_mel.num_mels
    for words in ({"model": "mast_tiny"}, {"pooling_schedule": "two"}):
        with pytest.raises(UsageError, match=r"init must be given with .* is a mast_nano: none"):
            set_up(FinetuneConfig(data=data, **words))
    assert set_up(FinetuneConfig(data=data, init="none")).encoder is None


def test_pretraining_may_go_on_from_it():
    assert find_weights("default", "mast_nano") == FOLDER
