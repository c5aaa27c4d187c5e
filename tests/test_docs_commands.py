"""Every command in the README and in docs exists, and its keys fit; the quick ones are run."""

import contextlib
import importlib
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from accelerate.commands.launch import launch_command_parser

from ssmast.audio import LogMel
from ssmast.cli import COMMANDS, main
from ssmast.encoder import Encoder
from ssmast.model import create_model
from ssmast.settings import UsageError
from tests.scripts import load_script

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
    *(ROOT / name for name in ("CONTRIBUTING.md", "linear_eval/README.md", "benchmarks/README.md")),
    ROOT / "RESULTS.md",
]
STARTS = r"(?:ssmast|accelerate launch|sbatch|python|make|pip install|\.\.\. (?=[\w.]+=))"
# What a reader puts a name of his own for -> one that exists.
NAMES = {
    "recipe=NAME": "recipe=real_nano",
    "task=NAME": "task=esc50",
    "protocol=NAME": "protocol=knn",
    "RANK": "0",
}


def commands(text):
    """Commands in code blocks and between backticks, without comments and prompts."""
    block = re.sub(r"\\\n *", " ", text)
    found = re.findall(rf"^ {{4}}({STARTS} ?.*)$", block, flags=re.M)
    fenced = "\n".join(re.findall(r"^```(?:bash|sh|console)?\n(.*?)^```", block, re.M | re.S))
    found += re.findall(rf"^({STARTS} .*)$", fenced, flags=re.M)
    inline = re.findall(rf"`({STARTS} [^`]*)`", re.sub(r"^( {4}|```).*$", "", text, flags=re.M))
    return [*found, *(" ".join(line.split()) for line in inline)]


def words_of(line):
    """As a shell would split it; `[key=a|b]` is the key with its first choice."""
    words = []
    for word in shlex.split(line, comments=True):
        if word != "[key=value" and re.fullmatch(r"\[[\w.]+=.*", word):
            word = word[1:].removesuffix("]")
        if (
            word in ("[key=value", "...]")
            or (words and word == "...")
            or re.fullmatch(r"\[[A-Z_]+", word)
        ):
            continue
        if "finetune" in line:
            word = word.replace("recipe=NAME", "recipe=finetune_small")
        word = NAMES.get(word, word)
        key, _, value = word.partition("=")
        words.append(f"{key}={value.split('|')[0]}" if value else word)
    return words


def check(words):
    """Raises unless the command exists and takes these words."""
    first, *rest = words
    if first == "ssmast":
        check_ssmast(rest)
    elif first == "...":
        check_ssmast(["pretrain", *rest])
    elif first == "make":
        assert re.search(rf"^{rest[0]}:", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)
    elif first == "pip":
        known = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        for word in rest:
            for extra in re.findall(r"^(?:\.|ssmast)\[(\w+)\]$", word):
                assert extra in known["optional-dependencies"]
    elif first == "sbatch":
        file, *keys = [word for word in rest if not word.startswith("--")]
        assert (ROOT / file).is_file()
        check_ssmast(["pretrain", *keys])
    elif first == "accelerate":
        asked = launch_command_parser().parse_args(rest[1:])
        flag = ["-m"] if asked.module else []
        check_python([*flag, asked.training_script, *asked.training_script_args])
    else:
        check_python(rest)


def check_ssmast(words):
    if words[0].startswith("-"):
        assert words == ["--help"]
        return
    assert words[0] in COMMANDS
    importlib.import_module(COMMANDS[words[0]][0]).main([*words[1:], "--print-config"])


def check_python(words):
    if words[0] == "-m":
        if words[1] in sys.stdlib_module_names:
            return
        module = importlib.import_module(words[1])
        if words[1].startswith("ssmast."):
            module.main([*words[2:], "--print-config"])
        return
    if words[0] == "mine.py":  # an objective of the reader's own takes what `ssmast` takes
        rest = words[1:]
        check_ssmast(rest if rest[0] in {"--help", "show-views"} else ["pretrain", *rest])
        return
    file = ROOT / words[0]
    assert file.is_file()
    if file.parent.name in ("pretrain", "linear_eval"):
        command = {"pretrain": "pretrain", "linear_eval": "probe"}[file.parent.name]
        check_ssmast([command, *words[1:]])
    elif file.parent.name == "benchmarks" and file.name != "export.py":  # takes folders alone
        module = load_script(file, name=f"benchmark_{file.stem}")
        module.main([*words[1:], "--print-config"])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_command_on_the_page_exists_and_takes_its_keys(page, monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    monkeypatch.chdir(tmp_path)
    wrong = []
    for line in commands(page.read_text(encoding="utf-8")):
        try:
            check(words_of(line))
        except (UsageError, AssertionError, ImportError, SystemExit) as error:
            wrong.append(f"{line}: {error}")
    assert not wrong, "\n".join(wrong)
    assert not list(tmp_path.iterdir())  # nothing was started


@pytest.mark.parametrize(
    "line",
    [
        "ssmast pretran data=x",
        "ssmast pretrain dta=x",
        "ssmast pretrain recipe=none_such",
        "accelerate launch pretrain/run.py stepps=3",
        "accelerate launch --num_process_count 2 pretrain/run.py",
        "accelerate launch pretrain/walk.py",
        "python -m ssmast.training.replay rum=x",
        "python benchmarks/probe.py devise=cuda",
        "sbatch --nodes=4 docs/launch/pretrain.sbatch dta=x",
        "sbatch --nodes=4 docs/launch/pretran.sbatch data=x",
        "make dmeo",
        "pip install '.[umapp]'",
        "... probe.dta=x",
    ],
)
def test_a_command_that_is_wrong_would_be_found(line, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    (found,) = commands(f"    {line}\n")
    with pytest.raises((UsageError, AssertionError, ImportError, SystemExit)):
        check(words_of(found))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """An encoder and sounds under the names that the README uses."""
    place = tmp_path_factory.mktemp("readme")
    torch.manual_seed(1)
    numbers = {"embed_dim": 8, "depths": (1, 1, 1, 1)}
    backbone = create_model("mast_nano", num_classes=0, input_size=(64, 96), **numbers)
    encoder = Encoder(backbone, LogMel(num_mels=64, mean=-2.7, std=1.4))
    encoder.save(place / "encoder")
    encoder.save(place / "runs" / "mine" / "encoder")
    generator = np.random.default_rng(0)
    (place / "FOLDER").mkdir()
    for number in range(8):
        envelope = np.abs(np.sin(np.arange(16000) / 16000 * (3 + number)))
        noise = 0.1 * generator.standard_normal(16000) * envelope
        soundfile.write(place / "FOLDER" / f"{number}.wav", noise, 16000)
        for name in ("low", "high"):  # two classes, of eight clips each
            folder = place / "FOLDER_OF_CLASSES" / name
            folder.mkdir(parents=True, exist_ok=True)
            pitch = {"low": 300, "high": 2500}[name] * (1 + number / 80)
            tone = 0.2 * np.sin(2 * np.pi * pitch * np.arange(8000) / 16000)
            soundfile.write(folder / f"{number}.wav", tone + noise[:8000], 16000)
    for name in ("clip", "NEW"):
        soundfile.write(place / f"{name}.wav", noise, 16000)
    soundfile.write(place / "QUERY.wav", noise, 16000)
    return place


def test_the_quick_commands_of_the_readme_run_in_their_order(place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    lines = commands((ROOT / "README.md").read_text(encoding="utf-8"))
    quick = r"ssmast (prepare FOLDER|fit|predict|embed|index|search|show-views|describe|--help)"
    ran = []
    for line in lines:
        if re.match(quick, line):
            words = words_of(line)[1:]
            assert main(words) == 0, capsys.readouterr().err
            ran.append(words[0])
    assert {"prepare", "fit", "predict", "embed", "index", "search", "show-views", "--help"} <= set(
        ran
    )
    for made in ("e.npz", "index", "corpus/manifest.parquet", "views.png"):
        assert (place / made).exists()
    assert "7.wav" in capsys.readouterr().out  # the query's own sound comes first


def test_the_examples_of_contributing_run(tmp_path):
    """In a process of their own, for a model stays registered."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    encoder, augmentation, task = re.findall(r"^```python\n(.*?)^```", text, re.M | re.S)
    (facts,) = re.findall(r"^```yaml\n(.*?)^```", text, re.M | re.S)
    for name in ("3_ann_0", "3_ann_7", "4_ben_1", "4_ben_5"):
        (tmp_path / "fsdd" / "recordings").mkdir(parents=True, exist_ok=True)
        soundfile.write(tmp_path / "fsdd" / "recordings" / f"{name}.wav", np.zeros(800), 8000)
    code = f"""
import torch, ssmast
from ssmast.model import family
exec({encoder!r}, vars(family))
net = ssmast.create_model("mast_pico", num_classes=3, input_size=(64, 96))
assert net(torch.zeros(2, 1, 64, 96)).shape == (2, 3)
assert "mast_pico" in ssmast.list_models()
names = {{}}
exec({augmentation!r}, names)
x = torch.randn(2, 1, 5, 7)
tilt, draws = names["Tilt"](2.0), torch.tensor([[0.5], [1.0]])
moved = tilt(x, draws) - x
assert torch.allclose(moved[1, 0, :, 3], torch.linspace(-1.0, 1.0, 5), atol=1e-6)
assert not moved[0].any()
assert torch.equal(names["Tilt"](0.0)(x, draws), x)
from ssmast.audio.augment import ResizedCrop, ViewAugment
words = {{"draws": torch.rand(2, 12), "background": None, "mean": 0.0, "std": 1.0}}
plain, tilted = (ViewAugment(ResizedCrop(), *step)(x, **words) for step in ((), (tilt,)))
assert torch.equal(tilted, tilt(plain, words["draws"][:, 5:6]))
import yaml
from ssmast.datasets import TASKS, prepare_task, task
names, facts = {{}}, yaml.safe_load({facts!r})
exec({task!r}, names)
assert facts["fsdd"].pop("published") == {{}}
task.FACTS.update(facts)
TASKS["fsdd"] = task.data_task("fsdd", names["BUILDERS"]["fsdd"])
report = prepare_task("fsdd", root="fsdd", out="sets/fsdd")
assert report.facts["counts"] == {{"test": 2, "train": 2}}, report.facts
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "named",
    re.findall(
        r"`((?:ssmast|tests|docs|benchmarks)/[\w./]+)`",
        (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"),
    ),
)
def test_what_contributing_names_exists(named):
    assert (ROOT / named).exists()


def test_the_readmes_python_runs(place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    (code,) = re.findall(
        r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(encoding="utf-8"), re.M | re.S
    )
    names = {"samples": np.zeros((2, 44100), dtype=np.float32)}
    with contextlib.redirect_stdout(None):
        exec(compile(code, "README", "exec"), names)
    assert names["encoder"].embed("clip.wav").shape[0] == 1
    assert names["net"].num_classes == 527
