"""Scores by class and whole, against scikit-learn and the rules of the EPIC challenge."""

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import precision_recall_fscore_support, top_k_accuracy_score

from ssmast.evaluation.class_scores import (
    action_top_k,
    classes_table,
    main_metric,
    score_classes,
    score_part,
    top_k,
)
from ssmast.evaluation.labelled_set import Head, LabelledSet, with_heads
from ssmast.evaluation.read_set import load_set
from ssmast.evaluation.task_spec import TaskSpec
from ssmast.splits import Split
from tests.sets import write_set


def _set(numbers, sizes, *, multi_label=False) -> LabelledSet:
    names = ("verb", "noun") if len(sizes) == 2 else ("label",)
    rows = np.arange(len(numbers[0]))
    return LabelledSet(
        spec=TaskSpec(name="made"),
        folder=Path("made"),
        clips=[f"{i}.wav" for i in rows],
        rows=rows,
        heads=[
            Head(name=name, classes=[f"{name}{i}" for i in range(size)])
            for name, size in zip(names, sizes, strict=True)
        ],
        cells=[
            [";".join(f"{name}{n}" for n in np.atleast_1d(of_clip)) for of_clip in own]
            for name, own in zip(names, numbers, strict=True)
        ],
        separator=";" if multi_label else "",
        splits=[Split(name="split", train=rows, valid=rows, test=rows)],
    )


def test_top_k_is_scikit_learns():
    generator = np.random.default_rng(0)
    scores, truth = generator.normal(size=(200, 12)), generator.integers(0, 12, 200)
    for k in (1, 5):
        expected = top_k_accuracy_score(truth, scores, k=k, labels=range(12))
        assert top_k(torch.tensor(scores), torch.tensor(truth), k=k) == pytest.approx(expected)
    assert top_k(torch.tensor(scores), torch.full((200,), -1), k=12) == 0.0


def _challenge(verbs, nouns, verb_truth, noun_truth, ks=(1, 5)):
    """The challenge's way: probabilities over everything given, all pairs, the 100 best, then ids.

    As there, the softmax runs over clips and classes at once; a clip's pairs are ranked by the
    product, and a pair is known by 1000 verb + noun.
    """
    verb_p, noun_p = (np.exp(scores - scores.max()) for scores in (verbs, nouns))
    verb_p, noun_p = verb_p / verb_p.sum(), noun_p / noun_p.sum()
    hits = dict.fromkeys(ks, 0)
    for v, n, true_verb, true_noun in zip(verb_p, noun_p, verb_truth, noun_truth, strict=True):
        product = np.outer(v, n)
        best = np.argsort(-product.ravel(), kind="stable")[:100]
        ids = [1000 * (place // len(n)) + place % len(n) for place in best]
        for k in ks:
            hits[k] += 1000 * true_verb + true_noun in ids[:k]
    return {k: hits[k] / len(verbs) for k in ks}


def test_actions_are_paired_as_in_the_epic_challenge():
    generator = np.random.default_rng(1)
    verb_truth, noun_truth = generator.integers(0, 97, 60), generator.integers(0, 300, 60)
    verbs, nouns = generator.normal(size=(60, 97)), generator.normal(size=(60, 300))
    verbs[np.arange(60), verb_truth] += 2.5
    nouns[np.arange(60), noun_truth] += 3.0
    verbs, nouns = (torch.tensor(scores).log_softmax(dim=1) for scores in (verbs, nouns))
    expected = _challenge(verbs.numpy(), nouns.numpy(), verb_truth, noun_truth)
    truths = torch.tensor(verb_truth), torch.tensor(noun_truth)
    for k in (1, 5):
        found = action_top_k(verbs, nouns, *truths, k=k)
        assert found == pytest.approx(expected[k])
        assert 0.05 < found < 0.98
    made = _set([verb_truth, noun_truth], [97, 300])
    numbers = score_part(made, torch.cat([verbs, nouns], dim=1), made.rows)
    assert numbers["action_accuracy"] == pytest.approx(expected[1])
    assert numbers["action_top5"] == pytest.approx(expected[5])
    assert numbers["verb_accuracy"] == top_k(verbs, truths[0], k=1)
    assert numbers["noun_top5"] == top_k(nouns, truths[1], k=5)
    assert main_metric(made) == "action_accuracy"


def test_a_class_that_the_model_lacks_is_never_a_right_action():
    verbs, nouns = torch.tensor([[0.0, -1.0]]), torch.tensor([[-1.0, 0.0]])
    unknown = torch.tensor([-1])
    assert action_top_k(verbs, nouns, torch.tensor([1]), unknown, k=1) == 0.0
    assert action_top_k(verbs, nouns, unknown, torch.tensor([1]), k=4) == 0.0


def test_recall_and_precision_of_each_class_are_scikit_learns():
    generator = np.random.default_rng(2)
    scores, truth = torch.tensor(generator.normal(size=(80, 6))), generator.integers(0, 5, 80)
    made = _set([truth], [6])
    rows = score_classes(made, scores, made.rows)
    precision, recall, _, counts = precision_recall_fscore_support(
        truth, scores.argmax(1), labels=range(6), zero_division=0
    )
    for i, row in enumerate(rows[:5]):
        assert (row["n"], row["recall"]) == (counts[i], pytest.approx(recall[i]))
        assert row["precision"] == pytest.approx(precision[i])
    assert rows[5]["recall"] is None
    table = classes_table(rows)
    assert table.splitlines()[0] == "| class | clips | recall | precision |"
    assert table.splitlines()[-1].startswith("| label5 | 0 |  | ")


def test_several_labels_are_scored_by_average_precision():
    generator = np.random.default_rng(3)
    numbers = [np.flatnonzero(generator.random(4) < 0.4) for _ in range(50)]
    made = _set([numbers], [4], multi_label=True)
    scores = torch.tensor(generator.normal(size=(50, 4)))
    rows, whole = score_classes(made, scores, made.rows), score_part(made, scores, made.rows)
    assert whole["map"] == pytest.approx(np.mean([row["average_precision"] for row in rows]))
    assert main_metric(made) == "map"
    with pytest.raises(ValueError, match="metric must be one of map, auc"):
        main_metric(made, "accuracy")


def test_classes_are_found_again_by_name_whatever_their_order(tmp_path):
    found = load_set(write_set(tmp_path / "tones", num_clips=24))
    heads = [Head(name="label", classes=["middle", "extra", "low"])]
    seen = with_heads(found, heads)
    positions = np.arange(6)
    assert seen.class_numbers(0, positions).tolist() == [2, 0, -1, 2, 0, -1]
    assert seen.one_hot(positions).sum(dim=1).tolist() == [1, 1, 0, 1, 1, 0]
    with pytest.raises(ValueError, match="none of the classes"):
        with_heads(found, [Head(name="label", classes=["x", "y"])])


def test_training_reads_a_table_as_probes_do(tmp_path):
    folder = tmp_path / "events"
    folder.mkdir()
    cells = ["dog; rain", "rain", "dog", "cat;dog;dog", "rain", "dog"]
    parts = ["train", "train", "train", "train", "valid", "test"]
    rows = [f"{i},{cell},{part}" for i, (cell, part) in enumerate(zip(cells, parts, strict=True))]
    (folder / "metadata.csv").write_text("path,label,split\n" + "\n".join([*rows, "9,,train"]))
    task = load_set(tmp_path, "events:multi_label=true")
    found = load_set(tmp_path, "events:multi_label=true")
    assert found.multi_label
    assert found.heads == [Head(name="label", classes=task.classes)]
    assert torch.equal(found.one_hot(np.arange(7)), task.targets())
    assert (found.clips, found.rows.tolist()) == (task.clips, task.rows.tolist())
    assert found.left_out == task.left_out == {}
    assert found.label_sets[0][6] == ()
    for one, other in zip(found.splits, task.splits, strict=True):
        assert {name: part.tolist() for name, part in one.parts().items()} == {
            name: part.tolist() for name, part in other.parts().items()
        }
    whole = load_set(tmp_path, "events")  # one label a cell, unless told otherwise
    assert not whole.multi_label
    assert "dog; rain" in whole.heads[0].classes


def test_a_chosen_share_is_held_out_where_the_set_has_no_valid_part(tmp_path):
    folder = tmp_path / "s"
    folder.mkdir()
    rows = [f"{i},{'ab'[i % 2]},n{i % 3},{'test' if i > 39 else 'train'}" for i in range(50)]
    (folder / "metadata.csv").write_text("path,label,noun,split\n" + "\n".join(rows))
    usual, half = load_set(folder), load_set(folder, held_out=0.5)
    assert [len(one.splits[0].valid) for one in (usual, half)] == [6, 20]
    assert usual.splits[0].valid.tolist() == load_set(folder, "s").splits[0].valid.tolist()
    heads = load_set(folder, labels=["label", "noun"]).heads
    assert [head.classes for head in heads] == [["a", "b"], ["n0", "n1", "n2"]]
    with pytest.raises(ValueError, match="has no column 'verb'"):
        load_set(folder, labels=["label", "verb"])
    with pytest.raises(
        ValueError, match="multi_label=true needs one label column, got label, noun"
    ):
        load_set(folder, "s:multi_label=true", labels=["label", "noun"])
    with pytest.raises(ValueError, match="column 'split': trains on 1 class in split"):
        load_set(folder, labels=["split"])


def test_weights_make_all_classes_come_alike():
    made = _set([np.array([0, 0, 0, 0, 1, 1, 2])], [3])
    weights = made.weights(made.rows)
    totals = [weights[[n[0] == c for n in made.numbers[0]]].sum() for c in range(3)]
    assert totals == pytest.approx([1.0, 1.0, 1.0])
