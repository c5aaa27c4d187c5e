import dataclasses
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from ssmast.classifier import Head
from ssmast.evaluation.fitting import Problem
from ssmast.evaluation.labelled_set import LabelledSet
from ssmast.evaluation.linear import fit_linear
from ssmast.evaluation.metrics import METRICS, t_interval
from ssmast.evaluation.probe import PROTOCOLS, metric_of, run_probe
from ssmast.evaluation.scorer import ProbeConfig
from ssmast.evaluation.simple import fit_few_shot, fit_knn
from ssmast.evaluation.task_spec import TaskSpec
from ssmast.splits import group_folds, named_parts

# Those that leave the encoder as it is; the slow ones have their tests in test_heads.py.
CHEAP = ("linear", "logreg", "knn", "evar_strict", "xares")
CHEAP_PROTOCOLS = [pytest.param(PROTOCOLS[name], id=name) for name in CHEAP]


def gaussians(
    *, num_clips: int, dim: int, classes: int, apart: float, seed: int = 0, folds: int = 0
) -> tuple[torch.Tensor, LabelledSet]:
    """Classes around random centres, features of very different scale and offset."""
    generator = torch.Generator().manual_seed(seed)
    numbers = torch.arange(num_clips) % classes
    centres = apart * torch.randn(classes, dim, generator=generator) / dim**0.5
    features = centres[numbers] + torch.randn(num_clips, dim, generator=generator)
    features = features * torch.logspace(-3, 3, dim) + torch.linspace(-50, 50, dim)
    clips = [f"{i:04d}" for i in range(num_clips)]
    labels = [f"class{n}" for n in numbers]
    if folds:
        splits = group_folds([str(i // classes % folds) for i in range(num_clips)])
    else:
        # in blocks of the classes, so that every part has all of them alike
        parts = [("train", "train", "valid", "test")[i // classes % 4] for i in range(num_clips)]
        splits = [named_parts(clips, labels, parts)]
    task = LabelledSet(
        spec=TaskSpec(name="gaussians"),
        folder=Path(),
        clips=clips,
        rows=np.arange(num_clips),
        heads=[Head(name="label", classes=sorted(set(labels)))],
        cells=[labels],
        splits=splits,
    )
    return features, task


@pytest.mark.parametrize(
    ("num_clips", "dim", "classes"), [(800, 16, 2), (1200, 64, 5), (400, 600, 4)]
)
def test_the_linear_probe_is_as_good_as_logistic_regression(num_clips, dim, classes):
    features, task = gaussians(num_clips=num_clips, dim=dim, classes=classes, apart=3.0)
    linear = run_probe(features, task)
    logreg = run_probe(features, task, protocol=PROTOCOLS["logreg"])
    assert 1 / classes + 0.15 < logreg.mean < 0.99  # neither hopeless nor trivial
    # half of the bootstrap interval over the test clips is about two standard errors
    assert logreg.test_interval95 is not None
    assert linear.mean > logreg.mean - (logreg.mean - logreg.test_interval95[0])


@pytest.mark.parametrize("protocol", CHEAP_PROTOCOLS)
def test_every_protocol_learns_what_is_there_and_nothing_else(protocol):
    features, task = gaussians(num_clips=400, dim=8, classes=4, apart=12.0)
    # Some protocols standardise nothing, and their fixed rates are meant for thousands of clips.
    features = (features - features.mean(dim=0)) / features.std(dim=0)
    assert run_probe(features, task, protocol=protocol, num_seeds=2, lr=0.03).mean > 0.95
    order = np.random.default_rng(0).permutation(400)
    shuffled = dataclasses.replace(task, cells=[[task.labels[i] for i in order]])
    assert run_probe(features, shuffled, protocol=protocol, num_seeds=2, lr=0.03).mean < 0.45


@pytest.mark.parametrize("protocol", CHEAP_PROTOCOLS)
def test_a_probe_repeats_itself_exactly(protocol):
    features, task = gaussians(num_clips=200, dim=8, classes=3, apart=3.0)
    first, second = (run_probe(features, task, protocol=protocol) for _ in range(2))
    assert {**first.to_dict(), "seconds": 0} == {**second.to_dict(), "seconds": 0}


@pytest.mark.parametrize("protocol", CHEAP_PROTOCOLS)
def test_the_test_part_has_no_say(protocol):
    features, task = gaussians(num_clips=200, dim=8, classes=3, apart=3.0)
    first = run_probe(features, task, protocol=protocol)
    changed = features.clone()
    changed[torch.from_numpy(task.splits[0].test)] *= 1000
    second = run_probe(changed, task, protocol=protocol)
    assert (first.chosen, first.valid) == (second.chosen, second.valid)


@pytest.mark.parametrize("protocol", CHEAP_PROTOCOLS)
def test_a_class_not_trained_on_counts_as_wrong(protocol):
    features, task = gaussians(num_clips=400, dim=8, classes=4, apart=12.0)
    features = (features - features.mean(dim=0)) / features.std(dim=0)
    split = task.splits[0]
    labels = list(task.labels)
    for i in split.test[:50]:
        labels[i] = "new"
    for i in split.valid[:5]:
        labels[i] = "new"
    task = dataclasses.replace(
        task, cells=[labels], heads=[Head(name="label", classes=sorted(set(labels)))]
    )
    result = run_probe(features, task, protocol=protocol, num_seeds=2, lr=0.03)
    assert result.mean == pytest.approx(0.5, abs=0.05)
    new = task.classes.index("new")
    assert not any(row[new] for row in result.confusion)  # it cannot be predicted
    assert sum(result.confusion[new]) == 50 * len(result.scores)


def test_seeds_give_the_interval_and_folds_theirs():
    features, task = gaussians(num_clips=1200, dim=64, classes=5, apart=2.0)
    result = run_probe(features, task, num_seeds=4)
    assert len(result.scores) == 4
    assert len(set(result.scores)) > 1  # seeds do something
    assert (result.mean, result.ci95) == t_interval(result.scores)
    assert result.fold_scores is None
    features, task = gaussians(num_clips=300, dim=8, classes=3, apart=2.0, folds=5)
    result = run_probe(features, task, num_seeds=2)
    assert result.fold_scores is not None
    assert np.array(result.fold_scores).shape == (5, 2)
    assert result.scores == pytest.approx(np.mean(result.fold_scores, axis=0).tolist())
    wanted = t_interval(np.mean(result.fold_scores, axis=1).tolist())
    assert (result.mean, result.ci95) == pytest.approx(wanted)
    assert [entry["split"] for entry in result.chosen] == [f"fold {k}" for k in range(5)]
    assert sum(map(sum, result.confusion)) == 2 * 300


def test_scale_and_constant_features_do_not_matter():
    features, task = gaussians(num_clips=300, dim=8, classes=3, apart=3.0)
    wanted = run_probe(features, task, num_seeds=2).mean
    constant = torch.full((300, 2), 7.7) * (1 + 1e-7 * torch.randn(300, 2))
    moved = torch.cat([1e4 * features - 3, constant], dim=1)
    assert run_probe(moved, task, num_seeds=2).mean == pytest.approx(wanted, abs=0.03)


def test_the_batched_models_equal_one_model_alone():
    """Several seeds at once against plain autograd and Adam, one by one.

    Batches of 16 cannot hold three classes in equal number: a bias gradient of zero but for
    rounding would be blown up to a whole step by Adam.
    """
    x, y = torch.randn(64, 5), torch.randint(3, (64,))
    valid = torch.randn(40, 5), torch.randint(3, (40,))
    problem = Problem((x, y), valid, 3, METRICS["accuracy"], seeds=range(7, 9))
    fitted = fit_linear(problem, grid=((0.5, 0.05),), num_epochs=4, batch_size=16)
    for row, seed in enumerate((7, 8)):
        layer = torch.nn.Linear(5, 3)
        torch.nn.init.zeros_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
        adam = torch.optim.Adam(layer.parameters(), lr=0.5 / 5)
        generator = torch.Generator().manual_seed(seed)
        for epoch in range(4):
            order = torch.randperm(64, generator=generator)
            for index, batch in enumerate(order.split(16)):
                progress = (epoch + index / 4) / 4
                adam.param_groups[0]["lr"] = 0.05 * (1 + np.cos(np.pi * progress))
                adam.zero_grad()
                loss = torch.nn.functional.cross_entropy(layer(x[batch]), y[batch])
                (loss + layer.weight.square().sum() / (2 * 0.05 * 64)).backward()
                adam.step()
        torch.testing.assert_close(
            fitted.scores(valid[0])[row], layer(valid[0]).detach(), atol=1e-4, rtol=1e-3
        )


def test_with_several_labels_each_class_is_a_binary_problem_of_its_own():
    """Binary cross-entropy, summed over the classes, against plain autograd and Adam."""
    x, y = torch.randn(64, 5), (torch.rand(64, 3) < 0.4).float()
    valid = torch.randn(40, 5), (torch.rand(40, 3) < 0.4).float()
    problem = Problem((x, y), valid, 3, METRICS["map"], seeds=range(7, 8))
    fitted = fit_linear(problem, grid=((0.5, 0.05),), num_epochs=4, batch_size=16)
    layer = torch.nn.Linear(5, 3)
    torch.nn.init.zeros_(layer.weight)
    torch.nn.init.zeros_(layer.bias)
    adam = torch.optim.Adam(layer.parameters(), lr=0.1)
    generator = torch.Generator().manual_seed(7)
    binary = torch.nn.functional.binary_cross_entropy_with_logits
    for epoch in range(4):
        for index, batch in enumerate(torch.randperm(64, generator=generator).split(16)):
            adam.param_groups[0]["lr"] = 0.05 * (1 + np.cos(np.pi * (epoch + index / 4) / 4))
            adam.zero_grad()
            loss = binary(layer(x[batch]), y[batch], reduction="none").sum(dim=1).mean()
            (loss + layer.weight.square().sum() / (2 * 0.05 * 64)).backward()
            adam.step()
    scores = fitted.scores(valid[0])[0]
    torch.testing.assert_close(scores, layer(valid[0]).detach(), atol=1e-4, rtol=1e-3)
    assert fitted.valid[0] == pytest.approx(float(METRICS["map"].score(scores, valid[1])))


@pytest.mark.parametrize("several", [False, True])
def test_neighbours_vote_as_an_exhaustive_search_says(several):
    features, others = torch.randn(50, 6), torch.randn(20, 6)
    if several:
        targets, name = (torch.rand(50, 3) < 0.4).float(), "map"
    else:
        targets, name = torch.randint(3, (50,)), "accuracy"
    problem = Problem((features, targets), (features, targets), 3, METRICS[name])
    fitted = fit_knn(problem, k_grid=(7,), temperature=0.2)
    truth = targets if several else torch.nn.functional.one_hot(targets, 3).float()
    likeness = torch.nn.functional.cosine_similarity(others[:, None], features[None], dim=2)
    for row, scores in zip(likeness, fitted.scores(others)[0], strict=True):
        near = row.argsort(descending=True)[:7]
        weights = (row[near] / 0.2).exp()
        wanted = (weights[:, None] * truth[near]).sum(dim=0) / weights.sum()
        torch.testing.assert_close(scores, wanted, atol=1e-4, rtol=1e-3)


def test_large_parts_are_passed_fewer_times():
    features, task = gaussians(num_clips=1200, dim=4, classes=2, apart=6.0)
    split = task.splits[0]
    x, y = features[split.train], torch.tensor([int(task.labels[i][-1]) for i in split.train])
    fitted = fit_linear(Problem((x, y), (x, y), 2, METRICS["accuracy"]), batch_size=2)
    assert fitted.chosen["epoch"] == [2000 // 100]  # at most 100 steps an epoch, 2000 in all


def test_the_rate_is_chosen_by_validation():
    features, task = gaussians(num_clips=400, dim=8, classes=4, apart=6.0)
    chosen = run_probe(features, task).chosen[0]
    assert chosen["lr"] * 8 in (1.0, 4.0)
    assert chosen["C"] in (0.003, 0.03, 0.3, None)
    assert chosen["epoch"] == [50] * 5


def test_unknown_names_list_the_known_ones():
    features, task = gaussians(num_clips=40, dim=4, classes=2, apart=3.0)
    with pytest.raises(ValueError, match=r"one of linear, logreg, knn, few_shot, .*, got 'svm'"):
        ProbeConfig(data="sets", protocol="svm")
    with pytest.raises(ValueError, match=r"one of accuracy, balanced_accuracy, map, .*, got 'f1'"):
        metric_of(task, "f1")
    with pytest.raises(ValueError, match="seeds must not be negative, got -1"):
        run_probe(features, task, num_seeds=-1)
    with pytest.raises(ValueError, match="lape_finetune trains the encoder; embeddings cannot"):
        run_probe(features, task, protocol=PROTOCOLS["lape_finetune"])


def test_features_must_fit():
    features, task = gaussians(num_clips=40, dim=4, classes=2, apart=3.0)
    with pytest.raises(ValueError, match="one row for each of 40 clips"):
        run_probe(features[:-1], task)
    features[3, 1] = torch.nan
    with pytest.raises(ValueError, match="features must be finite"):
        run_probe(features, task)


def test_ten_small_sets_take_seconds():
    features, task = gaussians(num_clips=400, dim=256, classes=10, apart=3.0)
    started = time.monotonic()
    run_probe(features, task)
    assert time.monotonic() - started < 3  # 0.3 s on a quiet core


@pytest.mark.data
@pytest.mark.slow
def test_log_mel_rows_agree_with_the_published_baselines(shared_data, tmp_path):
    """Features and splits as in BASELINES.md; logistic regression at its C gives its numbers."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    from ssmast.audio import open_corpus
    from ssmast.evaluation.baselines import LogMelStatistics
    from ssmast.evaluation.embed import embed_corpus
    from ssmast.evaluation.read_set import load_set

    published = {  # C=1, and its 95 % bootstrap interval
        "speech_commands_v2_test": (47.6, 43.4, 51.7),
        "speech_commands_v2_test:label=speaker,split=split_speaker": (95.1, 91.6, 97.5),
        "emodb_4": (73.5, 66.2, 80.2),
        "esc10": (80.7, 76.6, 84.4),
        "fsdd": (95.3, 93.0, 97.7),
        "instruments": (89.6, 85.3, 93.4),
        "instruments:label=midi,split=split_pitch": (48.7, 40.3, 58.0),
    }
    for spec, (wanted, low, high) in published.items():
        task = load_set(shared_data, spec)
        found = embed_corpus(LogMelStatistics(), open_corpus(task.folder), cache=tmp_path)
        features, labels = found.values[task.rows], np.array(task.labels)
        right: list[bool] = []
        for split in task.splits:
            train = split.train
            if spec in ("emodb_4", "esc10", "fsdd"):  # theirs had no valid part
                train = np.concatenate([split.train, split.valid])
            scaler = StandardScaler().fit(features[train])
            model = LogisticRegression(C=1.0, max_iter=3000)
            model.fit(scaler.transform(features[train]), labels[train])
            guesses = model.predict(scaler.transform(features[split.test]))
            right += (guesses == labels[split.test]).tolist()
        assert 100 * np.mean(right) == pytest.approx(wanted, abs=1.0), spec
        # our own protocols lie in the published interval, and the first in that of the second
        linear, logreg = (
            run_probe(features, task, protocol=PROTOCOLS[name]) for name in ("linear", "logreg")
        )
        assert low < 100 * linear.mean < high, spec
        assert logreg.test_interval95 is not None
        assert logreg.test_interval95[0] < linear.mean < logreg.test_interval95[1], spec


# -- few labels ------------------------------------------------------------------------------------


def test_few_shot_is_scikit_learns_ridge_on_the_drawn_clips():
    from sklearn.linear_model import RidgeClassifier

    features, task = gaussians(num_clips=240, dim=40, classes=3, apart=6.0)
    metric, truth = metric_of(task), torch.arange(240) % 3
    part = (features, truth)
    fitted = fit_few_shot(Problem(part, part, 3, metric, seeds=range(3, 5), shots=5))
    scores = fitted.scores(features)
    assert scores.shape == (2, 240, 3)
    assert not torch.allclose(scores[0], scores[1])  # another draw
    for row, seed in enumerate((3, 4)):
        order = np.random.default_rng(seed).random(240).argsort()
        drawn = np.concatenate([order[truth[order].numpy() == c][:5] for c in range(3)])
        few = features[drawn].double().numpy()
        mean, std = few.mean(axis=0), few.std(axis=0)
        x = (few - mean) / std
        ridge = RidgeClassifier(alpha=0.1 * (x**2).sum(axis=1).mean()).fit(x, truth[drawn].numpy())
        theirs = ridge.decision_function((features.double().numpy() - mean) / std)
        np.testing.assert_allclose(scores[row], theirs, atol=1e-4)


def test_few_shot_takes_as_many_clips_as_asked_and_more_are_better():
    features, task = gaussians(num_clips=400, dim=60, classes=4, apart=3.0)
    protocol = PROTOCOLS["few_shot"]
    few = run_probe(features, task, protocol=dataclasses.replace(protocol, shots=1))
    more = run_probe(features, task, protocol=protocol)
    assert len(more.scores) == 20
    assert more.chosen[0] == {"split": "split", "shots": 8, "draws": 20}
    assert more.mean > few.mean + 0.1 > 0.35
    with pytest.raises(ValueError, match=r"wants 99 .* one has 50; give shots=50"):
        run_probe(features, task, protocol=dataclasses.replace(protocol, shots=99))
