"""Every command that learns from labels takes the layouts of other programs by one reader."""

import pytest

from ssmast.audio import open_corpus, open_words
from ssmast.evaluation.cluster_task import ClusterConfig, run_clusters
from ssmast.evaluation.suite import ProbeConfig, run_suite
from ssmast.training.config import PretrainConfig
from ssmast.training.finetune.config import FinetuneConfig
from ssmast.training.finetune.setup import set_up
from ssmast.training.inputs import open_data
from tests.audio.corpus.test_layouts import (
    MADE,
    SPANS,
    ast_lists,
    audio_folder,
    chirps,
    kaldi,
    names,
    raven,
    tone,
)


def a_raven_folder(folder):
    chirps(folder, [f"rec{k}.wav" for k in range(4)])
    for k in range(4):
        (folder / f"rec{k}.selections.txt").write_text(raven(SPANS))
    return folder


def class_folders(folder, top=("",)):
    for part in top:
        for i in range(8):
            tone(folder / part / "ab"[i % 2] / f"{i}.wav")
    return folder


def label_tracks(folder):
    chirps(folder, [f"rec{k}.wav" for k in range(6)])
    for k in range(6):
        (folder / f"rec{k}.txt").write_text("0.0\t1.0\tlow\n1.0\t2.0\tmid\n")
    return folder


def table_of_spans(folder):
    chirps(folder, [f"rec{k}.wav" for k in range(6)])
    rows = [f"rec{k}.wav,{j},{j + 1},{'xy'[j % 2]}\n" for k in range(6) for j in range(3)]
    (folder / "events.csv").write_text("filename,onset,offset,event_label\n" + "".join(rows))
    return folder


def table(folder):
    for i in range(12):
        tone(folder / f"{i}.wav")
    rows = [f"{i}.wav,{'ab'[i % 2]}\n" for i in range(12)]
    (folder / "clips.csv").write_text("path,label\n" + "".join(rows))
    return folder / "clips.csv"


# layout -> (what makes it, clips heard in pretraining, clips with labels)
LAYOUTS = {
    "audio_folder": (lambda at: audio_folder(at, "jsonl"), 16, 16),
    "parquet": (lambda _: MADE / "parquet", 12, 12),
    "saved": (lambda _: MADE / "saved", 12, 12),
    "webdataset": (lambda _: MADE / "shard.tar", 6, 6),
    "raven": (a_raven_folder, 4, 16),
    "kaldi": (kaldi, 16, 16),
    "class_folders": (class_folders, 8, 8),
    "parts": (lambda at: class_folders(at, ("train", "test")), 16, 16),
    "audacity": (label_tracks, 6, 12),
    "spans": (table_of_spans, 6, 18),
    "json_lists": (ast_lists, 12, 12),
    "table": (table, 12, 12),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_command_takes_the_layout(layout, tmp_path, encoder_folder):
    make, heard, labelled = LAYOUTS[layout]
    place = make(tmp_path / "set")
    words = {"data": str(place), "encoder": str(encoder_folder), "baselines": "false"}
    (result,) = run_suite(ProbeConfig(**words, out=str(tmp_path / "o"), protocol="knn"))
    assert result.n_train + result.n_valid + result.n_test == labelled
    assert result.rejected == []
    config = ClusterConfig(**words, out=str(tmp_path / "c"), umap="false", seeds=1, part="all")
    if result.multi_label:
        with pytest.raises(ValueError, match="have several labels each"):
            run_clusters(config)
    else:
        assert run_clusters(config).n == labelled
    setup = set_up(FinetuneConfig(data=str(place), init=str(encoder_folder)))
    assert len(setup.clips) == result.n_train
    assert len(open_words(str(place))) == heard
    assert len(open_data(PretrainConfig(data=str(place), batch_size=4), runs=tmp_path)) == heard


def test_pretraining_hears_spans_or_recordings_as_asked(tmp_path):
    place = a_raven_folder(tmp_path / "set")
    for data in (str(place), f"[{place}, {place}]"):
        times = 1 + data.startswith("[")
        for spans, clips in {"auto": 4, "whole": 4, "spans": 16}.items():
            corpus = open_data(PretrainConfig(data=data, spans=spans, batch_size=4), runs=tmp_path)
            assert len(corpus) == times * clips
    table = str(place / "rec1.selections.txt")
    for spans, clips in {"auto": 4, "whole": 1, "spans": 4}.items():
        corpus = open_corpus(table, spans=spans)
        assert len(corpus) == clips
    assert names(corpus)[0] == "rec1.wav#t=0,1"
