"""Every recipe of fine-tuning, on a miniature of the official layout of its set."""

import json
from dataclasses import replace

import pytest
import torch
from accelerate import Accelerator

from ssmast import paper
from ssmast.audio.mel import KaldiMel
from ssmast.command import run_command
from ssmast.evaluation import evaluate
from ssmast.settings import parse
from ssmast.training.config import RECIPES
from ssmast.training.finetune.config import FinetuneConfig
from ssmast.training.finetune.objective import FineTuning
from ssmast.training.finetune.setup import set_up, training_items
from ssmast.training.inputs import build_log_mel
from ssmast.training.objective import RunFacts
from ssmast.training.step import TrainingState
from tests.datasets.conftest import Mini, mini
from tests.sets import write_set
from tests.training.finetune.test_command import SMALL, _run

__all__ = ["mini"]  # a fixture


def _sounds(mini: Mini, names: list[str]) -> None:
    for i, name in enumerate(names):
        mini.sound(name, seconds=0.4, hz=200.0 * (1 + i % 7))


def _kinetics(mini: Mini) -> str:
    labels = ["bowling", "singing"]
    for table, part, num in (("train.csv", "train", 8), ("val.csv", "val", 4)):
        lines = ["label,youtube_id,time_start,time_end,split,is_cc"]
        names = []
        for i in range(num):
            video = f"{part[0]}{i:010d}"
            lines.append(f"{labels[i % 2]},{video},3,13,{part},0")
            names.append(f"{part}/{video}_000003_000013.wav")
        mini.text(table, "\n".join(lines) + "\n")
        _sounds(mini, names)
    return "kinetics_sounds_32"


def _vggsound(mini: Mini) -> str:
    lines, names = [], []
    for i in range(12):
        part, label = ("test" if i >= 8 else "train"), ("people marching", "cat, hissing")[i % 2]
        lines.append(f'{i:011d},{i},"{label}",{part}')
        names.append(f"video/{i:011d}_{i:06d}.wav")
    mini.text("vggsound.csv", "\n".join(lines) + "\n")
    _sounds(mini, names)
    return "vggsound"


def _audioset(mini: Mini, name: str) -> str:
    mini.text(
        "class_labels_indices.csv",
        'index,mid,display_name\n0,/m/1,Speech\n1,/m/2,"Male speech, man speaking"\n2,/m/3,Bark\n',
    )
    tables = {"balanced_train": 8, "unbalanced_train": 8, "eval": 4}
    for table, num in tables.items():
        lines, names = [], []
        for i in range(num):
            mids = ("/m/1,/m/2", "/m/3", "/m/1")[i % 3]
            lines.append(f'{table[0]}{i:010d}, 0.000, 10.000, "{mids}"')
            names.append(f"{table}_segments/{table[0]}{i:010d}.wav")
        mini.text(f"{table}_segments.csv", "# a\n# b\n# c\n" + "\n".join(lines) + "\n")
        _sounds(mini, names)
    return name


def _epic(mini: Mini) -> str:
    header = (
        "narration_id,participant_id,video_id,narration_timestamp,start_timestamp,stop_timestamp,"
        "start_frame,stop_frame,narration,verb,verb_class,noun,noun_class,all_nouns,"
        "all_noun_classes\n"
    )
    for table, videos, num in (("train", ("P01_01", "P01_03"), 8), ("validation", ("P01_02",), 4)):
        rows = [
            f"{videos[0]}_{i},P01,{videos[i % len(videos)]},00:00:00.1,00:00:0{i % 3}.50,"
            f"00:00:0{1 + i % 3}.25,8,20,x,x,{i // 2 % 2},x,{i // 2 % 3},\"['x']\",[3]\n"
            for i in range(num)
        ]
        mini.text(f"EPIC_100_{table}.csv", header + "".join(rows))
        for video in videos:
            mini.sound(f"P01/{video}.wav", seconds=5.0)
    mini.text("EPIC_100_verb_classes.csv", "id,key,instances,category\n0,take,x,x\n1,put,x,x\n")
    nouns = "0,tap,x,x\n1,pan,x,x\n2,lid,x,x\n3,door,x,x\n"
    mini.text("EPIC_100_noun_classes.csv", "id,key,instances,category\n" + nouns)
    return "epic_kitchens_verb"


_LAYOUTS = {
    "finetune_kinetics_sounds": (_kinetics, "accuracy"),
    "finetune_vggsound": (_vggsound, "accuracy"),
    "finetune_epic_kitchens_100": (_epic, "action_accuracy"),
    "finetune_audioset_balanced": (lambda mini: _audioset(mini, "audioset_balanced"), "map"),
    "finetune_audioset_full": (lambda mini: _audioset(mini, "audioset_full"), "map"),
}


@pytest.mark.parametrize("recipe", _LAYOUTS)
def test_every_recipe_runs_on_its_official_layout(recipe, mini, tmp_path, capsys):
    layout, metric = _LAYOUTS[recipe]
    mini.build(layout(mini))
    words = [word for word in SMALL if not word.startswith("recipe=")]
    words += [f"recipe={recipe}", "model=mast_nano", "drop_path=0.1", "scoring.held_out=0.3"]
    assert _run(*words, "steps=2", data=tmp_path / "out", run=tmp_path / "run") == 0
    result = json.loads((tmp_path / "run" / "test.json").read_text())
    assert result["metric"] == metric
    assert result["n"] == 4
    expected = {
        "map": {"map", "auc", "d_prime", "mean_d_prime", "n"},
        "accuracy": {"accuracy", "top5", "balanced_accuracy", "n"},
        "action_accuracy": {
            *(f"{head}_{what}" for head in ("verb", "noun")
              for what in ("accuracy", "top5", "balanced_accuracy")),
            "action_accuracy", "action_top5", "n",
        },
    }  # fmt: skip
    assert result["numbers"].keys() == expected[metric]
    said = capsys.readouterr().out
    assert "| class |" in said or "| head | class |" in said
    assert evaluate.main([f"encoder={tmp_path / 'run'}", f"data={tmp_path / 'out'}"]) == 0
    assert (tmp_path / "run" / "evaluate" / "report.html").is_file()


def test_the_papers_sets_end_in_one_table(tmp_path, capsys, caplog):
    write_set(tmp_path / "sets" / "vggsound", num_clips=24)
    skipped = ("recipe=", "init=")
    small = ",".join(word for word in SMALL if not word.startswith(skipped))
    words = [
        str(tmp_path / "sets"), f"run={tmp_path / 'runs'}", "init=none", "models=[mast,ast]",
        "common=[run=elsewhere]",
    ]  # fmt: skip
    assert run_command(paper.main, words, name="ssmast paper") == 2
    assert "key=value words other than recipe, data" in capsys.readouterr().err
    words[-1] = f"common=[{small},model=mast_nano,steps=1,drop_path=0]"
    assert run_command(paper.main, words, name="ssmast paper") == 0
    said = capsys.readouterr().out
    assert (tmp_path / "runs" / "paper.md").read_text() == said
    rows = {line.split("|")[1].strip(): line.split("|")[2:-1] for line in said.splitlines()[2:14]}
    assert [cell.strip() for cell in rows["MAST"]][:3] == ["74.8", "93.1", "57.0"]
    for model in ("MAST", "AST"):
        cells = [cell.strip() for cell in rows[f"{model}, here"]]
        folder = tmp_path / "runs" / f"vggsound{'' if model == 'MAST' else '_ast'}"
        result = json.loads((folder / "test.json").read_text())
        assert cells[:2] == ["absent"] * 2
        assert cells[2] == f"{100 * result['mean']:.1f}"
        assert cells[3] == f"{100 * result['numbers']['top5']:.1f}"
        assert cells[4:] == ["absent"] * 5
    assert "Published tables" in (tmp_path / "runs" / "report.html").read_text()
    assert "audioset_full is absent" in caplog.text
    assert run_command(paper.main, words, name="ssmast paper") == 0  # resumed, all is finished
    assert capsys.readouterr().out == said
    empty = [str(tmp_path), *words[1:]]
    assert run_command(paper.main, empty, name="ssmast paper") == 1
    assert "make one with `ssmast prepare`" in capsys.readouterr().err


def test_the_recipes_hold_the_papers_settings():
    epochs = {"kinetics_sounds": 300, "epic_kitchens_100": 100, "vggsound": 50}
    epochs |= {"audioset_balanced": 50, "audioset_full": 10}
    for name, number in epochs.items():
        config = parse(
            FinetuneConfig, [f"recipe=finetune_{name}", "data=x"], command="test", recipes=RECIPES
        )
        assert config is not None
        assert (config.epochs, config.optim.name, config.optim.lr) == (number, "adamw", 1e-5)
        assert (config.model, config.optim.warmup, config.optim.min_lr) == ("mast_base", 0.0, 0.0)
        assert config.clips.balanced == (name == "audioset_full")
        assert config.labels == (["verb", "noun"] if "epic" in name else [])
        assert isinstance(build_log_mel(config), KaldiMel)
        assert (config.front_end.f_min, config.front_end.f_max) == (20.0, 8000.0)
        words = [f"recipe=finetune_{name}_ast", "data=x"]
        twin = parse(FinetuneConfig, words, command="test", recipes=RECIPES)
        assert twin is not None
        assert twin == replace(config, model="ast_base", drop_path=0.0, recipe=twin.recipe)


@pytest.mark.slow
@pytest.mark.parametrize("name", [f"{name}{kind}" for name in _LAYOUTS for kind in ("", "_ast")])
def test_every_recipe_takes_a_step_at_its_real_size(name, tmp_path):
    """As published, but two clips in micro-batches of one, and the classes of a tiny set."""
    data = write_set(tmp_path / "tones", num_clips=12, seconds=10.3)
    words = [f"recipe={name}", f"data={data}", "init=none", "batch_size=2", "labels=[]"]
    words += ["heads.lr_scale=[1]", "optim.gradient_accumulation_steps=2", "steps=10"]
    config = parse(FinetuneConfig, words, command="test", recipes=RECIPES)
    assert config is not None
    setup = set_up(config)
    front = build_log_mel(setup.config, mean=-7.0, std=4.0)
    run = RunFacts(log_mel=front, num_clips=len(setup.clips), steps=10, data=setup)
    state = TrainingState(FineTuning(setup.config, run), Accelerator(cpu=True))
    items = training_items(setup, setup.clips)
    network = state.objective.network
    before = network.patch_embed.proj.weight.detach().clone()
    result = state.train_step(items.collate([items[0], items[1]]))
    assert not result.skipped
    assert float(result.loss.loss) > 0
    assert not torch.equal(network.patch_embed.proj.weight, before)
    assert network.input_size == (128, setup.config.clips.frames)


@pytest.mark.parametrize("file", sorted(RECIPES.glob("finetune_*.yaml")), ids=lambda f: f.stem)
def test_every_recipe_says_how_to_run_it(file):
    text = file.read_text()
    assert "ssmast finetune" in text
    for fact in ("Hardware: ", "Time", "core" if file.stem.endswith("small") else "Score: "):
        assert fact in text
