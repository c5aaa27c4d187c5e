import numpy as np
import pytest

from ssmast.splits import group_folds, hold_out, leave_one_out, named_parts


def test_valid_is_the_next_fold_and_nothing_leaks():
    folds = [str(i) for i in (1, 2, 3, 9, 10)] * 4
    splits = group_folds(folds)
    assert [split.name for split in splits] == [f"fold {i}" for i in (1, 2, 3, 9, 10)]
    column = np.array(folds)
    tested = []
    for k, split in enumerate(splits):
        assert set(column[split.test]) == {("1", "2", "3", "9", "10")[k]}
        assert set(column[split.valid]) == {("1", "2", "3", "9", "10")[(k + 1) % 5]}
        parts = [set(rows.tolist()) for rows in split.parts().values()]
        assert set.union(*parts) == set(range(20))
        assert sum(map(len, parts)) == 20
        tested += split.test.tolist()
    assert sorted(tested) == list(range(20))  # every clip is tested once


def test_leave_one_out_keeps_a_speaker_in_one_part():
    speakers = ["anna", "bert", "cleo", "dan"] * 5
    for split in leave_one_out(speakers):
        parts = [{speakers[i] for i in rows} for rows in split.parts().values()]
        assert [len(part) for part in parts] == [2, 1, 1]
        assert set.union(*parts) == set(speakers)


def test_two_folds_cannot_give_three_parts():
    with pytest.raises(ValueError, match="at least 3 different values"):
        group_folds(["1", "2"] * 3)


def test_one_fold_written_in_two_ways_is_refused():
    with pytest.raises(ValueError, match=r"number written in two ways: 1, 1\.0, 2, 3"):
        group_folds(["1", "2", "1.0", "3"])
    assert len(group_folds(["1a", "01", "2", "fold 1"])) == 4


def test_held_out_clips_follow_names_not_order():
    names = [f"clip{i}" for i in range(200)]
    labels = ["ab"[i % 2] for i in range(200)]
    held = hold_out(names, labels)
    assert held.sum() == 30  # 15 %, stratified
    assert [labels[i] for i in np.flatnonzero(held)].count("a") == 15
    order = np.random.default_rng(0).permutation(200)
    again = hold_out([names[i] for i in order], [labels[i] for i in order])
    assert {names[i] for i in np.flatnonzero(held)} == {
        names[order[i]] for i in np.flatnonzero(again)
    }


def test_every_class_keeps_a_clip_to_train_on():
    labels = ["rare", "pair", "pair", *["many"] * 3]
    held = hold_out([str(i) for i in range(6)], labels)
    assert held.any()
    assert {label for label, out in zip(labels, held, strict=True) if not out} == set(labels)


def test_held_out_groups_share_nobody_with_train():
    generator = np.random.default_rng(0)
    groups = [f"speaker{i}" for i in generator.integers(0, 20, 400)]
    labels = ["abc"[i] for i in generator.integers(0, 3, 400)]
    held = hold_out([str(i) for i in range(400)], labels, groups=groups)
    inside = {group for group, out in zip(groups, held, strict=True) if out}
    outside = {group for group, out in zip(groups, held, strict=True) if not out}
    assert not inside & outside
    assert 0.10 < held.mean() < 0.20
    with pytest.raises(ValueError, match="at least 2 of them"):
        hold_out(["a", "b"], ["x", "y"], groups=["one", "one"])


def test_a_valid_part_that_is_there_is_used_under_any_of_its_names():
    for name in ("valid", "validation", "VAL", "dev"):
        split = named_parts(list("abc"), list("xxy"), ["train", name, "test"])
        assert split.valid.tolist() == [1]


def test_a_strange_split_is_named():
    with pytest.raises(ValueError, match="train, valid or test, got 'eval' for clip 'b'"):
        named_parts(["a", "b"], ["x", "y"], ["train", "eval"])


def test_many_small_classes_give_their_fraction_though_one_larger_class_does():
    labels = [str(number // 3) for number in range(300)] + ["0"]  # of three clips, and one of four
    held = hold_out([f"clip{number}" for number in range(301)], labels)
    assert held.sum() == 45  # 15 %, where one clip of the class of four was all
    assert len({label for label, out in zip(labels, held, strict=True) if out}) == 45
