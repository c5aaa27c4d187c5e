"""Events of recordings through `ssmast evaluate`: windows, spans, onset and offset."""

import numpy as np
import pytest
import soundfile
import torch

from ssmast.audio import open_corpus
from ssmast.classifier import Outputs, WindowScores
from ssmast.evaluation.evaluate import EventRules, _num_seen, main, score_recordings
from ssmast.evaluation.read_set import load_set
from ssmast.settings import UsageError
from tests.sets import write_set


class Ears:
    """Knows loud from soft in windows of a second."""

    outputs = Outputs([("label", ["loud", "quiet"])], False)
    sample_rate, window_seconds = 16000, 1.0

    def windows(self, sound, *, hop_seconds):
        starts = np.arange(0, len(sound) / 16000 - 0.99, hop_seconds)
        loud = [sound[int(16000 * s) : int(16000 * (s + 1))].abs().mean() > 0.05 for s in starts]
        scores = torch.tensor([[0.9, 0.1] if one else [0.1, 0.9] for one in loud]).log()
        return WindowScores(starts, starts + 1, scores, np.zeros(len(starts)))


@pytest.fixture
def recordings(tmp_path):
    """Four recordings of ten seconds: loud from 2 to 5 s, and quiet from 6 to 9 s."""
    rows = ["path,label,split"]
    for name, part in (("a", "train"), ("b", "valid"), ("c", "test"), ("d", "valid")):
        sound = np.full(160_000, 0.001, dtype=np.float32)
        sound[2 * 16000 : 5 * 16000] = 0.1
        soundfile.write(tmp_path / f"{name}.wav", sound, 16000)
        rows += [f'"{name}.wav#t=2,5",loud,{part}', f'"{name}.wav#t=6,9",quiet,{part}']
    (tmp_path / "metadata.csv").write_text("\n".join(rows) + "\n")
    return tmp_path


def _scores(folder, **words):
    labelled = load_set(str(folder), "")
    rules = EventRules(**{"hop": 1.0, **words})
    return score_recordings(
        Ears(), labelled, open_corpus(folder), labelled.split("").parts()["test"], rules
    )


def test_spans_are_found_by_onset_and_offset(recordings):
    found = _scores(recordings, background=["quiet"])
    assert (found.f1, found.classes["loud"]["n"]) == (1, 1)
    found = _scores(recordings)  # quiet is heard from 0 to 2 s and from 5 to 10 s
    assert (found.classes["loud"]["f1"], found.classes["quiet"]["f1"]) == (1, 0)
    assert found.precision == 1 / 3
    assert _scores(recordings, threshold=0.95).recall == 0


def test_rules_of_events_that_are_not_scored_are_refused():
    for word in ("hop=1", "threshold=0.9", "background=[quiet]", "collar=1"):
        with pytest.raises(UsageError, match="= is about events; give events=true too"):
            main(["encoder=x", "data=x", word])


def test_spans_of_one_recording_belong_to_one_part(recordings):
    table = recordings / "metadata.csv"
    table.write_text(
        table.read_text().replace('b.wav#t=6,9",quiet,valid', 'b.wav#t=6,9",quiet,test')
    )
    with pytest.raises(ValueError, match=r"b\.wav has spans in the part that is scored and"):
        _scores(recordings)


def test_a_recording_that_cannot_be_read_is_left_out_and_said(recordings, caplog):
    table = recordings / "metadata.csv"
    lines = [line.replace("valid", "test") if line.startswith('"b') else line
             for line in table.read_text().splitlines()]  # fmt: skip
    table.write_text("\n".join(lines) + "\n")
    (recordings / "b.wav").write_bytes(b"no sound")
    found = _scores(recordings, background=["quiet"])
    assert (found.f1, found.classes["loud"]["n"]) == (1, 1)
    assert "1 of 2 recordings are left out" in caplog.text


def test_clips_of_another_fold_than_the_one_of_the_training_are_known_as_seen(tmp_path):
    table = write_set(tmp_path / "tones") / "metadata.csv"
    table.write_text(table.read_text().replace(",split,", ",once,", 1))
    labelled = load_set(str(table.parent))
    corpus = labelled.corpus()
    trained, other = labelled.splits[0], labelled.splits[1]
    sha256 = corpus.take(labelled.rows[trained.train]).listing_hash
    assert _num_seen(labelled, corpus, trained.test, sha256) == 0
    assert _num_seen(labelled, corpus, other.test, sha256) == len(other.test) > 0
    assert _num_seen(labelled, corpus, other.test, "0" * 64) == 0
