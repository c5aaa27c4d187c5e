import csv
from collections import Counter

import numpy as np
import pytest

from ssmast.evaluation.labelled_set import shuffled, small_sample
from ssmast.evaluation.metrics import METRICS
from ssmast.evaluation.probe import chance
from ssmast.evaluation.read_set import load_set


def _write(folder, rows):
    folder.mkdir()
    with (folder / "metadata.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("path", "label", "split", "fold"))
        writer.writerows(rows)
    return load_set(folder, folder.name)


@pytest.fixture
def task(tmp_path):
    """200 clips of a common class and a rare one: 100 to train, 50 to validate, 50 to test."""
    parts = ("train", "train", "valid", "test")
    rows = [
        (f"{i}.wav", "rare" if i % 10 < 2 else "common", parts[i // 50], "") for i in range(200)
    ]
    return _write(tmp_path / "set", rows)


def test_the_test_part_stays_out_and_the_validation_part_is_scored(task):
    small = small_sample(task, max_clips=150)
    [split], [whole] = small.splits, task.splits
    names = {part: {small.clips[i] for i in where} for part, where in split.parts().items()}
    assert names["test"] == {task.clips[i] for i in whole.valid}
    assert names["train"] | names["valid"] == {task.clips[i] for i in whole.train}
    assert not names["train"] & names["valid"]
    assert len(names["valid"]) == 15
    assert not set(small.clips) & {task.clips[i] for i in whole.test}
    assert small.left_out == {"not in the sample": 50}


def test_a_sample_is_small_even_over_classes_and_always_the_same(task, tmp_path):
    small = small_sample(task, max_clips=60)
    assert small.clips == small_sample(task, max_clips=60).clips
    [split] = small.splits
    assert [len(part) for part in split.parts().values()] == [34, 6, 20]
    assert Counter(small.labels[i] for i in split.test) == {"common": 10, "rare": 10}
    # Row numbers go on naming the clips of the whole set.
    assert [f"{row}.wav" for row in small.rows] == small.clips
    reordered = [
        (task.clips[i], task.labels[i], ("train", "train", "valid", "test")[i // 50], "")
        for i in np.random.default_rng(0).permutation(200)
    ]
    again = small_sample(_write(tmp_path / "other", reordered), max_clips=60)
    assert set(again.clips) == set(small.clips)


def test_of_folds_the_first_split_is_used(tmp_path):
    rows = [(f"{i}.wav", "ab"[i % 2], "", str(i // 20)) for i in range(80)]
    small = small_sample(_write(tmp_path / "folds", rows), max_clips=1000)
    assert len(small.splits) == 1
    assert {clip.partition(".")[0] for clip in small.clips} == {str(i) for i in range(20, 80)}


def test_too_few_clips_for_the_classes_are_refused(task):
    with pytest.raises(ValueError, match=r"probe.max_clips=5 is too few for the 2 classes"):
        small_sample(task, max_clips=5)


def test_chance_of_permuted_labels_is_the_share_of_the_commonest_class(tmp_path):
    # The commonest class of the permuted training part may be any, and rare in the test part.
    labels = "aabbbaab"
    parts = ["train"] * 4 + ["valid", "valid", "test", "test"]
    rows = [(str(i), labels[i], parts[i], "") for i in range(8)]
    task = shuffled(_write(tmp_path / "even", rows), seed=1)
    assert chance(task, METRICS["accuracy"], shuffled=True) == pytest.approx(0.5)
    assert chance(task, METRICS["balanced_accuracy"], shuffled=True) == pytest.approx(0.5)


def test_chance_is_that_of_the_most_frequent_class(task):
    assert chance(task, METRICS["accuracy"]) == pytest.approx(0.8)  # "common" among the test clips
    balanced = small_sample(task, max_clips=60)
    assert chance(balanced, METRICS["accuracy"]) == pytest.approx(0.5)
