"""`ssmast compare` from words to page, with a training that is made up; and once for real."""

import dataclasses
import json
import logging
import re
import shutil
import signal
from pathlib import Path

import pytest
import torch

from ssmast.cli import main
from ssmast.command import StoppedError
from ssmast.compare import command, equal_minutes
from ssmast.compare.config import CompareConfig, named_settings, variants_of
from ssmast.encoder import load_encoder
from ssmast.encoder.whitening import Whitening
from ssmast.evaluation.results import Result
from ssmast.evaluation.suite import run_suite
from ssmast.files import write_json
from ssmast.settings import UsageError
from ssmast.training import inputs
from ssmast.training.finetune.objective import RESULT
from tests.audio.corpus.test_layouts import tone
from tests.held import held
from tests.training.processes import SMALL

# lr -> processor seconds of a step
_PACE = {1e-3: 0.5, 5e-4: 0.25}


@dataclasses.dataclass
class Trainer:
    """Stands in for pretraining: a run folder with times and an encoder, nothing learnt."""

    encoder: Path
    ran: list[str] = dataclasses.field(default_factory=list)
    dies_at: str = ""
    slower: float = 1.0

    def __call__(self, config) -> Path:
        folder = Path(config.run)
        if (folder / "report.html").is_file():
            return folder
        if self.dies_at == folder.name:
            raise StoppedError(signal.SIGTERM)
        if config.optim.lr > 1:
            raise ValueError("5 steps in a row gave a non-finite loss")
        self.ran.append(folder.name)
        shutil.copytree(self.encoder, folder / "encoder")
        each = _PACE[config.optim.lr] * (1.0 if "calibration" in config.run else self.slower)
        rate = config.batch_size / each
        rows = [
            {"step": step, "processor_seconds": each * own, "clips_per_second": rate}
            for step, own in [(1, 1), (config.steps, config.steps - 1)]
        ]
        if "calibration" not in config.run and hasattr(config, "probe") and config.probe.data:
            every = range(0, config.steps + 1, config.probe.every)
            rows += [{"step": n, "probe/a/linear": n / 1e3, "probe/a/knn": 0.1} for n in every]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        write_json(folder / "settings.json", dataclasses.asdict(config))
        (folder / "report.html").write_text("")
        return folder


@dataclasses.dataclass
class Prober:
    """Stands in for the probe: the first part of a name decides the score, the seed moves it."""

    scored: list[str] = dataclasses.field(default_factory=list)
    dies_at: str = ""

    def __call__(self, config) -> list[Result]:
        name = Path(config.out).name
        if self.dies_at == name:
            raise KeyboardInterrupt
        self.scored.append(name)
        levels = {"fast": 0.8, "slow": 0.7, "untrained": 0.5}
        mean = levels.get(name.split("-")[0], 0.4)
        mean += {"0": 0.0, "1": 0.004, "2": 0.001}.get(name[-1], 0.0) * (mean > 0.75)
        facts = {"num_classes": 3, "protocol": "linear", "metric": "accuracy", "chance": 1 / 3}
        return [Result(task=task, mean=mean, n_test=12, **facts) for task in ("tones", "more")]


@pytest.fixture
def prober(monkeypatch) -> Prober:
    prober = Prober()
    monkeypatch.setattr(command, "run_suite", prober)
    return prober


@pytest.fixture
def trainer(monkeypatch, prober, encoder_folder) -> Trainer:
    trainer = Trainer(encoder_folder)
    monkeypatch.setattr(equal_minutes, "run", trainer)
    return trainer


@pytest.fixture
def words(sets, tmp_path) -> list[str]:
    return [
        "data=somewhere", f"sets={sets}", "tasks=[tones]", f"out={tmp_path / 'out'}", "minutes=1",
        "seeds=2", "variants=[fast:optim.lr=1e-3,slow:optim.lr=5e-4]",
    ]  # fmt: skip


def _ran(trainer, *names):
    assert trainer.ran == list(names)
    trainer.ran.clear()


ALL = ("fast-calibration", "slow-calibration", "fast-0", "slow-0", "fast-1", "slow-1")


def test_variants_get_equal_time_and_end_in_table_json_and_page(
    trainer, words, tmp_path, capsys, caplog
):
    with caplog.at_level(logging.INFO):
        assert main(["compare", *words]) == 0
    _ran(trainer, *ALL)
    out = tmp_path / "out"
    shown = capsys.readouterr().out
    assert shown == (out / "compare.md").read_text()
    gain = "10.2 points, 95 % interval +7.7 to +12.7"
    assert shown.startswith(f"**fast is better than slow by {gain} (over 2 tasks and 2 seeds).**")
    for name in ("fast", "slow", "untrained", "log-mel", "random convolution"):
        assert f"\n| {name} |" in shown
    assert "| fast | 80.2 ± 2.5 | +30.2 ± 2.5 | 80.2 ± 2.5 | 80.2 ± 2.5 | 120 | 1 |" in shown
    assert "| fast minus slow | +10.2 ± 2.5 | 2 seeds | 0.012 | yes |" in shown
    found = json.loads((out / "compare.json").read_text())
    steps = {variant["name"]: variant["steps"] for variant in found["variants"]}
    assert steps == {"fast": [120], "slow": [240]}
    for variant in found["variants"]:
        assert variant["minutes"] == {"0": 1.0, "1": 1.0}
        assert variant["scores"].keys() == {"0", "1"}
        assert variant["untrained"].keys() == {"0", "1"}
    assert found["verdict"] in shown
    settings = json.loads((out / "runs" / "slow-1" / "settings.json").read_text())
    wanted = {"steps": 240, "seed": 1, "data": "somewhere", "workers": 0, "threads": 1}
    assert {key: settings[key] for key in wanted} == wanted
    html = (out / "report.html").read_text()
    for words_shown in ("fast \u2212 slow", "Task by task", "ssmast compare data=somewhere"):
        assert words_shown in html
    assert "run 1 of 4: fast, seed 0, 120 steps; at least 0:04:00 left in all" in caplog.text


def test_quality_over_minutes_is_the_mean_of_the_sets_and_is_drawn(trainer, words, tmp_path):
    assert main(["compare", *words, "scores_a_run=2"]) == 0
    fast, slow = json.loads((tmp_path / "out" / "compare.json").read_text())["variants"]
    assert fast["curves"]["0"] == [[0.0, 0.0], [0.5, 0.06], [1.0, 0.12]]
    assert slow["curves"]["1"] == [[0.0, 0.0], [0.5, 0.12], [1.0, 0.24]]
    html = (tmp_path / "out" / "report.html").read_text()
    assert "While training" in html
    assert "processor minutes" in html
    assert main(["compare", *words, f"out={tmp_path / 'none'}", "scores_a_run=0"]) == 0
    assert "While training" not in (tmp_path / "none" / "report.html").read_text()


def test_a_seed_without_scores_while_it_trained_leaves_the_curve_of_the_others(
    trainer, words, tmp_path
):
    assert main(["compare", *words, "seeds=1", "scores_a_run=0"]) == 0
    assert main(["compare", *words, "scores_a_run=2"]) == 0
    fast, _ = json.loads((tmp_path / "out" / "compare.json").read_text())["variants"]
    assert fast["curves"] == {"0": [], "1": [[0.0, 0.0], [0.5, 0.06], [1.0, 0.12]]}
    html = (tmp_path / "out" / "report.html").read_text()
    assert "processor minutes 0.5: 0.06, 0.12" in html


def test_the_untrained_network_of_a_whitened_encoder_takes_its_better_way(
    trainer, prober, words, encoder_folder, tmp_path, monkeypatch
):
    encoder = load_encoder(encoder_folder)
    vectors = torch.randn(40, encoder.dim, generator=torch.Generator().manual_seed(0))
    encoder.whitening = Whitening.of(vectors, directions=2)
    encoder.save(tmp_path / "white")
    trainer.encoder = tmp_path / "white"
    monkeypatch.setattr(command, "open_data", lambda *_, **__: None)
    measured = []

    def measure(*_, **__):
        measured.append(True)
        return encoder.whitening

    monkeypatch.setattr(command, "measured_whitening", measure)
    seen = []

    def probe(config):
        found = prober(config)
        is_twin = Path(config.out).name.startswith("untrained")
        if is_twin and load_encoder(config.encoder).whitening is None:
            seen.append(config.layers)
            return [dataclasses.replace(one, mean=0.6, valid=0.7) for one in found]
        return [dataclasses.replace(one, valid=0.65) for one in found]

    monkeypatch.setattr(command, "run_suite", probe)
    assert main(["compare", *words, "seeds=1"]) == 0
    variant = json.loads((tmp_path / "out" / "compare.json").read_text())["variants"][0]
    assert variant["untrained"]["0"] == {"tones": 0.6, "more": 0.6}  # whitened it had 0.5
    assert seen == ["", "best"] * 2
    assert "| untrained, its best layers |" in (tmp_path / "out" / "compare.md").read_text()
    assert measured == [True]  # the variants share it, and a resumed comparison has it


def test_untrained_networks_differ_by_seed_and_are_shared_by_variants(trainer, words, tmp_path):
    assert main(["compare", *words]) == 0
    fast, slow = json.loads((tmp_path / "out" / "compare.json").read_text())["variants"]
    assert fast["twins"] == slow["twins"]
    assert fast["twins"]["0"] != fast["twins"]["1"]
    one = load_encoder(tmp_path / "out" / "runs" / fast["twins"]["0"])
    trained = load_encoder(tmp_path / "out" / "runs" / "fast-0" / "encoder")
    assert one.sha256 != trained.sha256
    assert (one.dim, one.pooling) == (trained.dim, trained.pooling)


@pytest.mark.parametrize("stage", ALL)
def test_stopped_at_any_run_it_goes_on_with_what_is_left(stage, trainer, words, capsys):
    trainer.dies_at = stage
    assert main(["compare", *words]) == 128 + signal.SIGTERM
    assert "stopped by SIGTERM; the same command resumes it" in capsys.readouterr().err
    before = ALL[: ALL.index(stage)]
    _ran(trainer, *before)
    trainer.dies_at = ""
    assert main(["compare", *words]) == 0
    _ran(trainer, *ALL[len(before) :])
    assert main(["compare", *words]) == 0
    _ran(trainer)


def test_stopped_while_scoring_it_keeps_the_runs(trainer, prober, words):
    prober.dies_at = "slow-0"
    assert main(["compare", *words]) == 130
    _ran(trainer, *ALL[:4])
    prober.dies_at = ""
    assert main(["compare", *words]) == 0
    _ran(trainer, *ALL[4:])


def test_what_is_scored_is_not_scored_again(trainer, words, monkeypatch, tmp_path, caplog):
    """With the probe itself."""
    monkeypatch.setattr(command, "run_suite", run_suite)
    words[5] = "seeds=1"
    assert main(["compare", *words]) == 0
    before = json.loads((tmp_path / "out" / "compare.json").read_text())
    assert before["variants"][0]["scores"]["0"].keys() == {"tones"}
    assert not (tmp_path / "out" / "embeddings").exists()  # gigabytes of them after ten runs
    with caplog.at_level(logging.INFO):
        assert main(["compare", *words]) == 0
    assert caplog.text.count("done before") == 8  # two fixed, two variants, their twin twice
    assert json.loads((tmp_path / "out" / "compare.json").read_text()) == before


def test_more_seeds_and_variants_are_added_to_what_is_there(trainer, words, tmp_path):
    assert main(["compare", *words]) == 0
    trainer.ran.clear()
    more = [
        "seeds=3" if word == "seeds=2" else word.replace("slow:", "other:optim.lr=5e-4,slow:")
        for word in words
    ]
    assert main(["compare", *more]) == 0
    _ran(trainer, "other-calibration", "other-0", "other-1", "fast-2", "other-2", "slow-2")


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("minutes=2", "minutes (was 1.0, now 2.0)"),
        ("common=[batch_size=8]", "batch_size (was 96, now 8)"),
    ],
)
def test_other_settings_in_the_same_folder_are_refused(word, said, trainer, words, capsys):
    assert main(["compare", *words]) == 0
    trainer.ran.clear()
    assert main(["compare", *words, word]) == 1
    assert f"was started with other settings of fast: {said}" in capsys.readouterr().err
    _ran(trainer)


def test_a_variant_that_fails_is_a_row_that_says_why_and_the_others_go_on(
    trainer, words, tmp_path, capsys
):
    words = [word.replace("[fast", "[bad:optim.lr=9,fast") for word in words]
    assert main(["compare", *words]) == 0
    _ran(trainer, *ALL)
    shown = capsys.readouterr().out
    assert "\n| bad | failed: 5 steps in a row gave a non-finite loss |  |  |  |  |  |" in shown
    assert "failed: 5 steps in a row" in (tmp_path / "out" / "report.html").read_text()
    assert "bad" not in json.loads((tmp_path / "out" / "compare.json").read_text())["means"]


def test_where_all_fail_the_first_reason_is_the_error(trainer, words, capsys):
    words[-1] = "variants=[bad:optim.lr=9]"
    assert main(["compare", *words]) == 1
    assert "no variant could be compared; bad failed: 5 steps in a row" in capsys.readouterr().err


def test_where_all_fail_the_page_of_what_went_well_stays(trainer, words, tmp_path, monkeypatch):
    assert main(["compare", *words]) == 0
    page = (tmp_path / "out" / "compare.md").read_text()

    def on_other_audio(config):
        raise ValueError("was started on other audio")

    monkeypatch.setattr(equal_minutes, "run", on_other_audio)
    assert main(["compare", *words]) == 1
    assert (tmp_path / "out" / "compare.md").read_text() == page


@pytest.mark.parametrize("content", ['{"fast": ', "[]", '{"fast": {"steps": 3}}'])
def test_damaged_calibrations_are_named(content, trainer, words, tmp_path, capsys):
    assert main(["compare", *words]) == 0
    (tmp_path / "out" / "calibration.json").write_text(content)
    assert main(["compare", *words]) == 1
    assert "calibration.json is damaged; put back the file" in capsys.readouterr().err


def test_a_second_comparison_is_kept_out_of_the_folder(trainer, words, tmp_path, capsys):
    out = tmp_path / "out"
    with held("from ssmast.files import lock_of, locked", "locked(lock_of(place), doing='')", out):
        assert main(["compare", *words]) == 1
        assert f"another process is comparing in {out}; wait until" in capsys.readouterr().err
    _ran(trainer)
    assert main(["compare", *words]) == 0


def test_time_that_is_more_than_a_tenth_off_is_said(trainer, words, capsys):
    trainer.slower = 1.2
    assert main(["compare", *words]) == 0
    shown = capsys.readouterr().out
    assert "- a run of fast used 120 % of the time that was asked for" in shown
    assert "| 1.2 (+20 %) |" in shown


def test_on_a_gpu_the_time_is_that_of_the_clock(trainer, words, monkeypatch):
    config = variants_of(command.CompareConfig(variants="a", out="x"))[0].config
    rows = [{"step": 10, "clips_per_second": 48.0}, {"step": 14, "clips_per_second": 96.0}]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert equal_minutes._seconds(rows, 14, config) == 10 * 96 / 48 + 4 * 96 / 96


def test_names_and_settings_of_variants_are_read_from_one_word():
    assert named_settings("[a,b:optim.betas=[0.9, 0.95],seed=1]") == {
        "a": [],
        "b": ["optim.betas=[0.9, 0.95]", "seed=1"],
    }


def test_objectives_recipes_and_settings_are_variants_over_what_is_common():
    config = CompareConfig(
        out="x", objectives=["ss_mast"], recipes=["ssast_nano"], variants="wide:head.dim=64",
        common="[batch_size=32]",
    )  # fmt: skip
    found = {variant.name: variant.config for variant in variants_of(config)}
    assert list(found) == ["ss_mast", "ssast_nano", "wide"]
    assert [one.objective for one in found.values()] == ["ss_mast", "ssast", "ss_mast"]
    assert {one.batch_size for one in found.values()} == {32}
    assert (found["ss_mast"].head.dim, found["wide"].head.dim) == (256, 64)
    assert found["wide"].front_end.num_mels == 64  # of recipe=real_nano


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({}, "nothing to compare; give objectives="),
        ({"variants": "a:optim.lrr=1"}, "unknown key 'optim.lrr' in `variant a`; did you mean"),
        ({"variants": "a:optim.lr=-1"}, "variant a: optim.lr must be"),
        ({"variants": "a:steps=3"}, "variant a: steps is the same for all variants"),
        ({"variants": "a:probe.every=3"}, "probe.every is the same for all variants"),
        ({"variants": "optim.lr=1"}, "must begin with a name, as [name:optim.lr=1]"),
        ({"variants": "a,a:optim.lr=1"}, "variant 'a' comes twice"),
        ({"variants": "log_mel"}, "variant 'log_mel' needs another name"),
        ({"variants": "../a"}, "variant '../a' needs another name"),
        ({"objectives": ["ss_mast"], "variants": "ss_mast"}, "'ss_mast' needs another name"),
        ({"objectives": ["none"]}, "variant none: objective must be"),
        ({"objectives": ["ssast"]}, "left alone by objective=ssast"),
        ({"variants": "a:model=none"}, "variant a: model 'none' is unknown"),
        ({"variants": "a", "labelled": "x"}, "labelled=x is what recipes of fine-tuning learn"),
        ({"variants": "a", "common": "lr"}, "settings are key=value words, got 'lr'"),
    ],
)
def test_what_cannot_be_compared_is_said_before_anything_starts(asked, said):
    with pytest.raises(UsageError, match=r".") as error:
        variants_of(CompareConfig(out="x", **asked))
    assert said in str(error.value)


def test_a_wrong_set_is_said_before_anything_starts(trainer, words, capsys):
    assert main(["compare", *words, "tasks=[nowhere]"]) == 1
    assert "no labelled set 'nowhere'" in capsys.readouterr().err
    _ran(trainer)


def test_a_dry_run_lists_the_variants(words, tmp_path, capsys):
    assert main(["compare", *words, "--dry-run"]) == 0
    assert capsys.readouterr().out == "fast: optim.lr=1e-3\nslow: optim.lr=5e-4\n"
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_whole_comparison_on_the_built_in_sounds(tmp_path, capsys, monkeypatch):
    """Real runs: one that learns, one whose weights stand still, one that fails; then resumed."""
    monkeypatch.setattr(inputs, "SYNTHETIC_CLIPS", 240)
    given = {"steps", "workers", "checkpoint_every", "log_every", "tensorboard", "threads"}
    given |= {"show_views", "recipe"}
    common = ",".join(word for word in SMALL if word.partition("=")[0] not in given)
    words = [
        f"out={tmp_path / 'out'}", "minutes=0.04", "seeds=1", "recipe=smoke", f"common=[{common}]",
        "variants=[learns:optim.lr=1e-3,still:optim.lr=1e-12,optim.min_lr=0,bad:init=gone.safetensors]",
        "calibration_steps=5",
    ]  # fmt: skip
    assert main(["compare", *words]) == 0
    shown = capsys.readouterr().out
    found = json.loads((tmp_path / "out" / "compare.json").read_text())
    learns, _, bad = found["variants"]
    assert learns["steps"][0] > 5
    assert set(found["means"]) == {"learns", "still"}
    assert "gone.safetensors" in bad["failed"]
    assert 0.005 < learns["minutes"]["0"] < 0.4
    assert shown.startswith("**")
    run = tmp_path / "out" / "runs" / "learns-0"
    before = (run / "encoder" / "model.safetensors").read_bytes()
    (run / "report.html").unlink()
    shutil.rmtree(run / "encoder")
    assert main(["compare", *words]) == 0
    assert (run / "encoder" / "model.safetensors").read_bytes() == before
    assert capsys.readouterr().out == shown


def test_learning_from_labels_is_a_variant_of_the_same_minutes(
    trainer, words, sets, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(equal_minutes, "tune", trainer)
    monkeypatch.setitem(_PACE, 2e-3, 0.5)
    labels = "labels:recipe=finetune_small,model=mast_nano,front_end.num_mels=64,optim.lr=2e-3"
    words[-1] = f"variants=[fast:optim.lr=1e-3,{labels}]"
    with pytest.raises(UsageError, match="labelled must be the set that this recipe learns from"):
        variants_of(CompareConfig(out="x", variants=words[-1].partition("=")[2]))
    assert main(["compare", *words, f"labelled={sets / 'tones'}"]) == 0
    _ran(
        trainer, "fast-calibration", "labels-calibration", "fast-0", "labels-0", "fast-1",
        "labels-1",
    )  # fmt: skip
    assert re.search(r"\n\| labels \| .* \| 120 \| 1 \|\n", capsys.readouterr().out)
    settings = json.loads((tmp_path / "out" / "runs" / "labels-1" / "settings.json").read_text())
    assert (settings["init"], settings["steps"], settings["seed"]) == ("none", 120, 1)
    assert settings["data"] == str(sets / "tones")


@dataclasses.dataclass
class Tuner(Trainer):
    """Stands in for fine-tuning: a network's name decides the score, set and fold move it."""

    def __call__(self, config) -> Path:
        folder = super().__call__(config)
        mean = {"mast_nano": 0.8, "ast_nano": 0.7}[config.model]
        mean += 0.1 * (config.task == "folds") - 0.02 * (config.fold == "b")
        facts = {"num_classes": 3, "protocol": "fine-tuned", "metric": "accuracy", "chance": 1 / 3}
        write_json(folder / RESULT, Result(task=config.task, mean=mean, **facts).to_dict())
        rows = [{"step": n, "valid/accuracy": n / 1e3} for n in (config.scoring.every, 120)]
        with (folder / "metrics.jsonl").open("a") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
        return folder


@pytest.fixture
def classifiers(monkeypatch, encoder_folder, tmp_path) -> list[str]:
    monkeypatch.setattr(equal_minutes, "tune", Tuner(encoder_folder))
    for name, parts in {"once": ["train", "valid", "test"], "folds": ["a", "b", "c"]}.items():
        rows = [f"path,label,{'fold' if name == 'folds' else 'split'}"]
        for i in range(12):
            tone(tmp_path / "sets" / name / f"{i}.wav")
            rows.append(f"{i}.wav,{'xy'[i % 2]},{parts[i % 3]}")
        (tmp_path / "sets" / name / "metadata.csv").write_text("\n".join(rows) + "\n")
    return [
        "score=classifier", f"labelled={tmp_path / 'sets'}", f"out={tmp_path / 'out'}", "minutes=1",
        "seeds=2", "variants=[mast:model=mast_nano,ast:model=ast_nano]", "common=[optim.lr=1e-3]",
    ]  # fmt: skip


def test_classifiers_are_compared_by_their_own_test_scores(classifiers, tmp_path, capsys):
    assert main(["compare", *classifiers]) == 0
    shown = capsys.readouterr().out
    gain = "mast cannot be told apart from ast (+10.0 points): needs more seeds"
    assert shown.startswith(f"**{gain} (over 2 tasks and 2 seeds).**")
    assert re.search(r"\| variant \| average \| folds \| once \| steps \| minutes \|", shown)
    assert "| mast | 84.5 ± 6.4 | 89.0 ± 12.7 | 80.0 ± 0.0 | 120 | 1 |" in shown
    assert "untrained" not in shown
    found = json.loads((tmp_path / "out" / "compare.json").read_text())
    mast = found["variants"][0]
    assert mast["scores"]["1"] == {"folds": pytest.approx(0.88), "once": pytest.approx(0.8)}
    assert mast["curves"]["folds 0"] == [[pytest.approx(10 / 120), 0.01], [1.0, 0.12]]
    settings = json.loads((tmp_path / "out/runs/ast-folds-1/settings.json").read_text())
    wanted = {"fold": "b", "task": "folds", "seed": 1, "steps": 120, "init": "none"}
    assert {key: settings[key] for key in wanted} == wanted
    assert "validation part, mean over" in (tmp_path / "out" / "report.html").read_text()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["sets=x"], "sets=x has no part in score=classifier"),
        (["data=x"], "data=x has no part in score=classifier"),
        (["labelled="], "labelled must be the sets that score=classifier learns"),
        (["tasks=[gone]"], "no labelled set 'gone'"),
        (["tasks=[]"], "tasks=[] names no task"),
        (["recipes=[real_nano]"], "variant real_nano: score=classifier is of recipes of fine-"),
        (["variants=[a:fold=b]"], "variant a: fold is the same for all variants"),
    ],
)
def test_classifiers_that_cannot_be_compared(words, said, classifiers, capsys):
    assert main(["compare", *classifiers, *words]) in (1, 2)
    assert said in capsys.readouterr().err


@pytest.mark.slow
def test_labels_and_no_labels_are_compared_for_real(sets, tmp_path, capsys):
    small = "model=mast_nano,front_end.num_mels=32,batch_size=4"
    words = [
        f"data={sets / 'tones'}", f"sets={sets / 'tones'}", f"labelled={sets / 'tones'}",
        f"out={tmp_path / 'out'}", "minutes=0.01", "seeds=1", "calibration_steps=2",
        f"variants=[none:{small},views.frames=32,labels:recipe=finetune_small,{small},"
        "clips.frames=32]",
    ]  # fmt: skip
    assert main(["compare", *words]) == 0
    said = capsys.readouterr().out
    assert "| labels |" in said
    assert "| none |" in said
