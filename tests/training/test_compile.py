"""compile=: whole graphs, few of them, the same training, nothing of it in what is kept."""

import pytest
import torch
from torch._dynamo.utils import counters

from ssmast.training.config import Optim, PatchDropConfig
from ssmast.training.metrics_log import read_metrics
from ssmast.training.state import wants_compile
from ssmast.training.step import TrainingState
from tests.sets import write_set
from tests.training.finetune.test_command import _run as finetune
from tests.training.test_pretrain import _assert_same_state, _dies_at
from tests.training.test_pretrain import _run as pretrain
from tests.training.test_ss_mast import _batch, _config
from tests.training.test_ss_mast import _trainer as ss_mast
from tests.training.test_ssast import _batch as ssast_batch
from tests.training.test_ssast import _trainer as ssast


@pytest.fixture
def eager_backend(monkeypatch):
    """Dynamo with its graphs run as they are: seconds in place of minutes."""
    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, **words: compile_(f, backend="eager", **words))
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def _pair(name: str, compile_: str, **changes):
    if name == "ssast":
        return ssast(f"compile={compile_}", steps=8), [ssast_batch(seed=i) for i in range(8)]
    model = "ast_nano" if name == "ast" else "mast_nano"
    drop = PatchDropConfig(mode="structured" if name == "mast" else "random", rate=0.4)
    config = _config(model=model, compile=compile_, patch_drop=drop, **changes)
    return ss_mast(config), [_batch(seed) for seed in range(8)]


def _losses(name: str, compile_: str, **changes) -> tuple[list[float], list[str], list[int]]:
    trainer, batches = _pair(name, compile_, **changes)
    losses, graphs = [], []
    for batch in batches:
        losses.append(float(trainer.train_step(batch).loss.loss))
        graphs.append(counters["stats"]["unique_graphs"])
    return losses, list(trainer.objective.state_dict()), graphs


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # Dynamo's own look at it
@pytest.mark.parametrize("name", ["mast", "random", "ast", "ssast"])
@pytest.mark.usefixtures("eager_backend")
def test_a_step_is_whole_graphs_and_trains_the_same(name):
    """fullgraph=True: a break is an error."""
    wanted, names, graphs = _losses(name, "false")
    assert graphs[-1] == 0
    found, found_names, graphs = _losses(name, "true")
    assert found == pytest.approx(wanted, rel=1e-4)
    assert found_names == names  # of a checkpoint
    assert graphs[0] > 0
    assert graphs[-1] <= 20
    assert graphs[-1] - graphs[-3] == 0  # every size has been met


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
def test_the_inductor_trains_the_same():
    # Its kernels round otherwise, and steps at a usual rate multiply that: 4 % after eight.
    gently = {"optim": Optim(lr=1e-6)}
    wanted, names, _ = _losses("mast", "false", **gently)
    found, found_names, _ = _losses("mast", "true", **gently)
    assert found == pytest.approx(wanted, rel=1e-3)
    assert found_names == names


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
def test_a_compiled_run_is_resumed_to_the_same_bits(tmp_path, monkeypatch):
    audio = write_set(tmp_path / "tones", num_clips=24)
    words = ["compile=true", "steps=4", "checkpoint_every=2"]
    assert pretrain(*words, audio=audio, run=tmp_path / "whole") == 0
    step = TrainingState.train_step
    monkeypatch.setattr(TrainingState, "train_step", _dies_at(step, 4))
    with pytest.raises(RuntimeError, match="killed"):
        pretrain(*words, audio=audio, run=tmp_path / "parts")
    monkeypatch.setattr(TrainingState, "train_step", step)
    assert pretrain(*words, "resume=auto", audio=audio, run=tmp_path / "parts") == 0
    _assert_same_state(tmp_path / "whole", tmp_path / "parts")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
def test_the_inductor_fine_tunes_the_same(tmp_path):
    tones = write_set(tmp_path / "tones", num_clips=24)
    losses = {}
    for asked in ("false", "true"):
        run = tmp_path / asked
        assert finetune(f"compile={asked}", "optim.lr=1e-6", data=tones, run=run) == 0
        rows = read_metrics(run / "metrics.jsonl")
        losses[asked] = [row["loss"] for row in rows if "loss" in row]
    assert counters["stats"]["unique_graphs"] > 0
    assert losses["true"] == pytest.approx(losses["false"], rel=1e-3)


def test_auto_compiles_where_triton_makes_kernels(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    for capability, wanted in (((9, 0), True), ((6, 1), False)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, c=capability: c)
        assert wants_compile("auto", torch.device("cuda")) == wanted
    assert not wants_compile("auto", torch.device("cpu"))
    assert wants_compile("true", torch.device("cpu"))
    assert not wants_compile("false", torch.device("cuda"))
