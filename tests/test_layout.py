"""The house: imports go one way, and nothing unsafe is called anywhere."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from ssmast.cli import COMMANDS

PACKAGE = Path(__file__).parents[1] / "ssmast"
# room -> rooms it may import from. Below everything: settings, files, html, progress, splits,
# engine, command.
BASE = {
    "settings",
    "files",
    "command",
    "progress",
    "html",
    "splits",
    "version",
    "weights",
    "engine",
}
ENCODER = {"encoder", "classifier"}
RESULTS = {"audio", "model", "evaluation", "events"} | ENCODER | BASE
MAY_SEE = {
    "settings": set(),
    "files": set(),
    "html": {"settings"},
    "progress": set(),
    "engine": {"command"},
    "splits": set(),
    "version": set(),
    "weights": set(),
    "command": {"files", "settings"},
    "audio": {"settings", "files", "progress"},
    "model": {"settings", "weights"},
    "contrastive": {"model"},
    "encoder": {"audio", "model", "settings", "files", "html", "weights"},
    "classifier": {"audio", "model", "settings", "files", "encoder"},
    "datasets": {"audio"} | BASE,
    "prepare": {"audio"} | BASE,
    "evaluation": {"audio", "model", "events"} | ENCODER | BASE,
    "report": RESULTS,
    "retrieval": RESULTS,
    "training": {"contrastive", "report"} | RESULTS,
    "compare": {"training", "report"} | RESULTS,
    "events": {"files"},
    "fit": {"audio", "model", "evaluation"} | ENCODER | BASE,
    "predict": {"audio", "encoder", "classifier", "events"} | BASE,
    "hear": ENCODER,
    "hf": ENCODER,
    "adapters": {"model"} | ENCODER,
    "paper": {"training", "report"} | RESULTS,
    "export": {"training", "report"} | RESULTS,
    "doctor": {"audio", "datasets", "model", "training", "evaluation"} | ENCODER | BASE,
    "demo": {"evaluation", "training", "report", "retrieval", "export"} | BASE,
    "cli": BASE,
    "__main__": {"cli"},
}


def _files() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def _room(file: Path) -> str:
    parts = file.relative_to(PACKAGE).with_suffix("").parts
    return "ssmast" if parts == ("__init__",) else parts[0]


def _is_command(file: Path) -> bool:
    """Commands end by writing the page of what they made."""
    return _module(file) in {home for home, _ in COMMANDS.values()}


def _module(file: Path) -> str:
    parts = file.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _imports(file: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return names


@pytest.mark.parametrize("file", _files(), ids=lambda file: str(file.relative_to(PACKAGE)))
def test_imports_go_one_way(file):
    room = _room(file)
    if room == "ssmast":
        return
    for name in _imports(file):
        head, _, rest = name.partition(".")
        if head != "ssmast":
            assert head not in {"pretrain", "linear_eval", "benchmarks", "tests"}
            continue
        seen = rest.split(".")[0] or "ssmast"
        allowed = MAY_SEE[room] | ({"report"} if _is_command(file) else set())
        assert seen == room or seen in allowed, f"{room} must not see {seen}"


@pytest.mark.parametrize("file", _files(), ids=lambda file: str(file.relative_to(PACKAGE)))
def test_only_the_rooms_that_may_use_accelerate_and_open_sound_files(file):
    imports = {name.split(".")[0] for name in _imports(file)}
    if _room(file) not in {"training", "evaluation"}:
        assert "accelerate" not in imports
    if _room(file) != "audio":
        assert not imports & {"soundfile", "torchcodec", "audioread", "librosa"}


@pytest.mark.parametrize("file", _files(), ids=lambda file: str(file.relative_to(PACKAGE)))
def test_nothing_is_unpickled_evaluated_or_handed_to_a_shell(file):
    assert not _imports(file) & {"pickle", "dill", "cloudpickle", "shelve", "marshal"}
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        assert called not in {"eval", "exec", "os.system", "torch.load", "torch.save", "yaml.load"}
        assert not called.endswith((".extractall", ".extract"))
        assert not any(word.arg == "shell" for word in node.keywords)


def _seen(file: Path) -> dict[str, set[str]]:
    """Module of ours that a file imports -> the names it takes from it."""
    seen: dict[str, set[str]] = {}
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name in MODULES:
                    seen.setdefault(alias.name, set())
        elif isinstance(node, ast.ImportFrom) and node.module and node.module in MODULES:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                if inner in MODULES:
                    seen.setdefault(inner, set())
                else:
                    seen.setdefault(node.module, set()).add(alias.name)
    return seen


MODULES = {_module(file): file for file in _files()}


def test_no_import_circle():
    """Lazy imports inside functions count too."""
    arrows = {name: set(_seen(file)) - {name} for name, file in MODULES.items()}
    left = dict(arrows)
    while True:
        free = [name for name, seen in left.items() if not seen & set(left)]
        if not free:
            break
        for name in free:
            del left[name]
    assert not left, f"a circle among {sorted(left)}"


@pytest.mark.parametrize("file", _files(), ids=lambda file: str(file.relative_to(PACKAGE)))
def test_underscore_names_stay_in_their_file(file):
    for module, names in _seen(file).items():
        private = {name for name in names if name.startswith("_") and not name.startswith("__")}
        assert not private, f"{_module(file)} takes {private} from {module}"


# room -> most files directly in it, most arrows between its modules (sub-folders included)
# audio: of its arrows, 34 are the layouts of other programs, each of which is a file that names
# clips, reads a table and makes a corpus.
BUDGET = {"training": (20, 70), "audio": (14, 74), "evaluation": (25, 67), "model": (11, 33)}


@pytest.mark.parametrize("room", BUDGET)
def test_rooms_stay_small(room):
    most_files, most_arrows = BUDGET[room]
    inside = {name for name in MODULES if f"{name}.".startswith(f"ssmast.{room}.")}
    assert len(list((PACKAGE / room).glob("*.py"))) <= most_files
    assert sum(len((set(_seen(MODULES[name])) - {name}) & inside) for name in inside) <= most_arrows


def test_a_training_step_is_read_in_nine_files_and_900_lines():
    page = (PACKAGE.parent / "docs" / "core.md").read_text(encoding="utf-8")
    step = page[page.index("## One training step") : page.index("## A score")]
    files = re.findall(r"^\| \d \| `(ssmast/[\w/]+\.py)` \|", step, flags=re.MULTILINE)
    lines = [len((PACKAGE.parent / file).read_text().splitlines()) for file in files]
    assert 5 < len(files) <= 9
    assert sum(lines) <= 900, dict(zip(files, lines, strict=True))


# The same word for the same thing: the main of a command, its keys, a page.
SHARED_NAMES = {"__init__", "command", "config", "objective"}


def test_no_file_name_means_two_things():
    names = [file.stem for file in _files() if file.stem not in SHARED_NAMES]
    assert sorted({name for name in names if names.count(name) > 1}) == []


def test_help_answers_without_loading_torch():
    code = (
        "import sys; sys.argv = ['ssmast', '--help']; import ssmast.cli; ssmast.cli.main();"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "pretrain" in done.stdout


@pytest.mark.parametrize(
    "first",
    ["import ssmast, timm", "import timm, ssmast", "import ssmast.model, timm"],
)
def test_importing_registers_the_models_with_timm(first):
    code = (
        f"{first}; assert timm.is_model('mast_nano'); assert ssmast.__version__;"
        "assert not [f for f in __import__('sys').meta_path if 'Timm' in type(f).__name__];"
        "import importlib.resources; assert importlib.resources.files(timm).is_dir()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_importing_loads_nothing_heavy():
    code = "import sys, ssmast;assert not {'torch', 'timm', 'numpy', 'yaml'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_an_unknown_command_names_the_known_ones(capsys):
    from ssmast.cli import main

    assert main(["pretran"]) == 2
    assert "the commands are doctor, demo, prepare, pretrain" in capsys.readouterr().err


def test_random_state_is_forked_of_named_devices_alone():
    """PyTorch takes that of every GPU otherwise, and so opens those of other processes."""
    calls = [
        node
        for file in _files()
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("fork_rng")
    ]
    assert len(calls) > 5
    for call in calls:
        assert [word.arg for word in call.keywords] == ["devices"], ast.unparse(call)
