"""Every key of a training: refused where it makes no sense, and of effect where it does."""

from pathlib import Path
from unittest import mock

import pytest
import torch
from accelerate import Accelerator

from ssmast.audio import open_corpus
from ssmast.encoder import load_encoder
from ssmast.settings import UsageError, flat_fields, parse
from ssmast.training import inputs, launch
from ssmast.training.checkpoint import checkpoints, load_checkpoint
from ssmast.training.config import RECIPES, PretrainConfig
from ssmast.training.finetune.config import FinetuneConfig
from ssmast.training.init_weights import backbone_weights
from ssmast.training.inputs import build_log_mel, mean_and_std, segment_loader, steps_of
from ssmast.training.metrics_log import read_metrics
from ssmast.training.objectives import objective_of
from ssmast.training.pretrain import run
from ssmast.training.run_folder import MAY_CHANGE, RunFolder
from tests.training.processes import ROOT, SMALL, write_tones
from tests.training.states import state_of

# Keys of which any number means something, or that the parts refuse which are made of them.
_FREE = {
    "seed", "epochs", "views.crop_freq", "views.crop_time",
    *(f"front_end.{key}" for key in ("sample_rate", "n_fft", "hop_length", "num_mels")),
    "front_end.f_min", "front_end.f_max",
}  # fmt: skip


def _config(*words: str) -> PretrainConfig:
    # Some have no heads, queue or predictor to make small.
    asked = {word.partition("=")[2] for word in words if word.startswith("objective=")}
    small = list(SMALL)
    if asked:
        unused = ("head.", "loss.") if "ssast" in asked else ("loss.", "head.predictor")
        small = [word for word in SMALL if not word.startswith(unused)]
        small.append("loss.queue_size=576")  # in place of the recipe's own
    config = parse(PretrainConfig, [*small, *words], command="test", recipes=RECIPES)
    assert config is not None
    return config


def _numbers(schema: type) -> dict[str, str]:
    """Number of a leaf that no run can mean, by its key."""
    impossible = {int: "-1", float: "-1e9", list[float]: "[-1e9, -1e9]", list[int]: "[-1, -1]"}
    leaves = flat_fields(schema).items()
    return {key: impossible[leaf.type] for key, leaf in leaves if leaf.type in impossible}


def test_transforms_that_are_never_applied_are_refused():
    words = ["data=x", "views.transforms=x.yaml", "views.waveform_augment=0"]
    with pytest.raises(UsageError, match=r"views\.waveform_augment must be above 0 with views"):
        parse(PretrainConfig, words, command="test", recipes=RECIPES)


@pytest.mark.parametrize("schema", [PretrainConfig, FinetuneConfig])
def test_a_number_that_cannot_be_is_refused_before_any_audio_is_read(schema):
    accepted, said = [], {}
    for key, number in _numbers(schema).items():
        recipe = "smoke" if schema is PretrainConfig else "finetune_small"
        words = [f"recipe={recipe}", "data=x"]
        words += ["objective=ssast", "export.network=student"] if key.startswith("ssast.") else []
        try:
            parse(schema, [*words, f"{key}={number}"], command="test", recipes=RECIPES)
        except UsageError as error:
            said[key] = str(error)
        else:
            accepted.append(key)
    assert set(accepted) <= _FREE
    assert all(f"{key} must be " in sentence for key, sentence in said.items())


@pytest.mark.parametrize(
    "word",
    ["front_end.f_max=9000", "front_end.num_mels=0", "views.crop_freq=[2, 1]",
     "head.kind=conv", "head.norm=group", "head.pooling=most", "export.layers=first",
     "export.pooling=most", "patch_drop.mode=some", "optim.betas=[0.9]", "drop_path=2",
     "loss.temperature=0"],
)  # fmt: skip
def test_what_cannot_be_built_is_refused_before_any_audio_is_read(word):
    with pytest.raises(ValueError, match=r"must|unknown"):
        _check(word)


def _check(word: str) -> None:
    config = _config(word)
    objective_of(config.objective).check(config)


_OTHERS = ("swav", "vicreg", "barlow_twins", "dino")
_SSAST = "recipe=ssast_nano views.frames=96 front_end.num_mels=64 objective=ssast"
# Key -> another value, and what else has to be set for it to count.
_CHANGES = {
    "model": "ast_nano patch_drop.mode=random", "steps": "9", "batch_size": "6", "seed": "1",
    "drop_path": "0.5", "objective": "ssast " + _SSAST,
    "front_end.sample_rate": "32000", "front_end.n_fft": "512", "front_end.hop_length": "100",
    "front_end.num_mels": "48", "front_end.f_min": "100", "front_end.f_max": "7000",
    "front_end.stats_clips": "3", "front_end.kind": "kaldi",
    "optim.name": "sgd", "optim.lr": "1e-3", "optim.min_lr": "1e-4", "optim.warmup": "0.5",
    "optim.weight_decay": "5", "optim.betas": "[0.5, 0.6]", "optim.momentum": "0.1 optim.name=sgd",
    "optim.max_grad_norm": "0.01",
    "views.frames": "48", "views.segments": "1", "views.waveform_augment": "1",
    "views.mixup_rate": "0.9", "views.mixup_memory": "2", "views.crop_freq": "[1, 1]",
    "views.crop_time": "[1, 1]", "views.columns": "0.5 patch_drop.rate=0 views.frames=64",
    "views.rows": "0.5",
    "patch_drop.rate": "0", "patch_drop.mode": "random", "patch_drop.teacher": "true",
    "head.kind": "linear", "head.pooling": "freq+max", "head.layers": "stages",
    "head.hidden": "8", "head.dim": "4", "head.num_layers": "2", "head.norm": "layer",
    "head.predictor": "8",
    "loss.temperature": "0.5", "loss.learn_temperature": "true", "loss.queue_size": "0",
    "loss.queue_fraction": "0", "loss.batch_negatives": "false",
    "teacher.momentum": "0.5", "teacher.final_momentum": "0.5",
    "views.local": "1",
    "swav.prototypes": "5", "swav.temperature": "0.2", "swav.epsilon": "0.1",
    "swav.iterations": "1", "vicreg.invariance": "1", "vicreg.variance": "1",
    "vicreg.covariance": "9", "barlow_twins.redundancy": "0.1", "dino.outputs": "7",
    "dino.temperature": "0.2", "dino.teacher_temperature": "0.1", "dino.center_momentum": "0.5",
    "ssast.masked": "0.5", "ssast.cluster": "[1, 1]", "ssast.weight": "1",
}  # fmt: skip
# What cannot change a step, and where it is tested.
_ELSEWHERE = {
    "track": "test_trackers",
    "recipe": "test_recipes", "data": "test_pretrain", "run": "test_pretrain",
    "init": "test_init_weights", "epochs": "below", "resume": "test_pretrain",
    "workers": "test_pretrain", "threads": "test_pretrain", "processes": "test_pretrain",
    "optim.gradient_accumulation_steps": "test_ss_mast", "max_bad_fraction": "test_survive",
    "channel": "test_long_files", "clip_seconds": "test_long_files",
    "spans": "test_other_layouts",
    "max_skipped": "test_failing_runs", "alarm": "test_failing_runs",
    "cache": "below", "precision": "below", "checkpoint_every": "below", "log_every": "below",
    "keep_checkpoints": "below", "tensorboard": "below", "show_views": "below",
    "export.network": "below", "export.pooling": "below", "export.layers": "below",
    "export.window_seconds": "below", "export.whiten": "below",
    "views.transforms": "test_transforms",
    "probe.data": "test_online_probe", "probe.tasks": "test_online_probe",
    "probe.every": "test_online_probe", "probe.max_clips": "test_online_probe",
    "compile": "test_compile", "grad_checkpointing": "test_ss_mast",
    "tf32": "test_launch", "deterministic": "test_launch",
    "cudnn_attention": "test_launch",
}  # fmt: skip


def test_every_key_of_pretraining_is_tested():
    assert not _CHANGES.keys() & _ELSEWHERE.keys()
    assert _CHANGES.keys() | _ELSEWHERE.keys() == flat_fields(PretrainConfig).keys()


@pytest.fixture(scope="module")
def audio(tmp_path_factory) -> Path:
    return write_tones(tmp_path_factory.mktemp("audio"))


def _trained(audio: Path, *words: str) -> list[float]:
    """What three steps leave behind: losses and weights of both networks."""
    config = _config(f"data={audio}", *words)
    kind, corpus = objective_of(config.objective), open_corpus(audio)
    mean, std = mean_and_std(config, corpus, decoded=corpus, frames=config.views.frames)
    log_mel = build_log_mel(config, mean=mean, std=std)
    state = state_of(kind, config, num_clips=len(corpus), log_mel=log_mel)
    items = kind.items(config, corpus, None)
    loader = segment_loader(config, items, first_step=0, steps=3, rank=0, num_ranks=1)
    left = [float(state.train_step(batch).loss.loss) for batch in loader]
    for backbone in state.objective.encoders().values():
        left.append(sum(float(p.detach().double().square().sum()) for p in backbone.parameters()))
    return left


@pytest.fixture(scope="module")
def usual(audio) -> dict[str, list[float]]:
    """Of the settings as they are, by method and optimiser."""
    words = {"": [], "sgd": ["optim.name=sgd"], "ssast": _SSAST.split()}
    words |= {name: [f"objective={name}"] for name in _OTHERS}
    return {name: _trained(audio, *own) for name, own in words.items()}


def test_the_same_settings_train_the_same(audio, usual):
    assert _trained(audio) == usual[""]


@pytest.mark.parametrize("key", _CHANGES)
def test_a_key_that_should_change_a_step_does(key, audio, usual):
    value, *others = _CHANGES[key].replace(", ", ",").split()
    base, section = "", key.partition(".")[0]
    if section in ("ssast", *_OTHERS):
        base, others = section, _SSAST.split() if section == "ssast" else [f"objective={section}"]
    elif key == "optim.momentum":
        base = "sgd"
    words = [*others, f"{key}={value}"]
    assert _trained(audio, *words) != usual[base]


def test_epochs_are_passes_over_the_clips_unless_steps_are_given():
    assert steps_of(_config("steps=0", "epochs=2.5", "batch_size=4"), num_clips=10) == 7
    assert steps_of(_config("steps=3", "epochs=2.5", "batch_size=4"), num_clips=10) == 3


def test_what_a_run_writes_follows_its_keys(audio, tmp_path):
    words = ["tensorboard=true", "show_views=2", "log_every=4", "keep_checkpoints=1"]
    words += ["export.pooling=mean+max", "export.layers=stages"]

    def folder(name: str, *words: str) -> RunFolder:
        return RunFolder(path=run(_config(f"data={audio}", f"run={tmp_path / name}", *words)))

    one = folder("one", *words, "export.window_seconds=3", "export.whiten=2")
    two, three = folder("two", "keep_checkpoints=2"), folder("three", "checkpoint_every=0")
    kept = [[path.name for path in checkpoints(folder.checkpoints)] for folder in (one, two, three)]
    assert kept == [["00000006"], ["00000004", "00000006"], ["00000006"]]
    steps = [[row["step"] for row in read_metrics(folder.metrics_file)] for folder in (one, two)]
    assert steps == [[1, 4, 6], [1, 2, 3, 4, 5, 6]]
    for name in ("tensorboard", "views.png"):
        assert (one.path / name).exists()
        assert not (two.path / name).exists()
    asked, usual = load_encoder(one.encoder), load_encoder(two.encoder)
    assert (asked.pooling, asked.layers, asked.window_seconds) == ("mean+max", "stages", 3.0)
    assert (usual.pooling, usual.layers, usual.window_seconds) == ("freq+max", "last", 10.0)
    assert asked.whitening is not None
    assert usual.whitening is None
    assert len(asked.whitening.factors) == 2


@pytest.mark.parametrize("network", ["student", "teacher"])
def test_the_network_that_is_asked_for_is_exported(network, audio, tmp_path):
    words = [f"export.network={network}", "steps=2", f"run={tmp_path / 'run'}"]
    folder = RunFolder(path=run(_config(f"data={audio}", *words)))
    state, tensors = load_checkpoint(checkpoints(folder.checkpoints)[-1])
    weights = load_encoder(folder.encoder).backbone.state_dict()
    for name in ("student", "teacher"):
        own = backbone_weights(state, tensors, network=name)
        assert all(torch.equal(own[key], weights[key]) for key in own) is (name == network)


@pytest.mark.parametrize(("asked", "used"), [("bf16", "bf16"), ("fp32", "no"), ("auto", None)])
def test_the_precision_is_the_accelerators(asked, used, monkeypatch):
    seen = {}

    class Spy(Accelerator):
        def __init__(self, **kwargs) -> None:
            seen.update(kwargs)
            super().__init__(cpu=True)

    monkeypatch.setattr(launch, "Accelerator", Spy)
    launch.start_accelerator(precision=asked, processes=0, threads=torch.get_num_threads())
    has_it = torch.cuda.is_available() and torch.cuda.is_bf16_supported(False)
    assert seen["mixed_precision"] == (used or ("bf16" if has_it else "no"))


@pytest.mark.parametrize(("limit", "used"), [("1", 1), ("2", 2), ("", 3), ("none", 3)])
def test_openmp_s_limit_of_threads_is_kept(limit, used, monkeypatch):
    monkeypatch.setenv("OMP_THREAD_LIMIT", limit)
    launch.start_accelerator(precision="fp32", processes=0, threads=3)
    assert torch.get_num_threads() == used


@pytest.mark.parametrize(("has_it", "used"), [(True, "bf16"), (False, "no")])
def test_bfloat16_is_not_emulated_on_a_gpu_that_lacks_it(has_it, used, monkeypatch):
    seen = []

    def accelerator(**words):
        seen.append(words["mixed_precision"])
        return mock.Mock(num_processes=1)

    def supported(including_emulation=True):
        return has_it or including_emulation

    monkeypatch.setattr(launch, "Accelerator", accelerator)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "an old one")
    capability = (8, 0) if has_it else (6, 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    threads = torch.get_num_threads()
    launch.start_accelerator(precision="auto", processes=0, threads=threads)
    assert seen == [used]
    if not has_it:
        with pytest.raises(ValueError, match="an old one is older; use precision=fp32"):
            launch.start_accelerator(precision="bf16", processes=0, threads=threads)


def test_decoded_audio_is_kept_where_it_is_asked_for(audio, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(inputs, "cache_decoded", lambda *args, **kw: seen.append((args, kw)))
    corpus, runs = open_corpus(audio), tmp_path / "runs"
    assert inputs.decoded(_config("cache=off"), corpus, runs=runs) is corpus
    assert not seen
    for word in ("cache=auto", f"cache={tmp_path / 'kept'}"):
        inputs.decoded(_config(word), corpus, runs=runs)
    [((_, here), auto), ((_, there), own)] = seen
    assert (here, auto["max_bytes"]) == (tmp_path / "runs" / "cache", 8 << 30)
    assert (there, own["max_bytes"]) == (tmp_path / "kept", None)


def test_the_document_names_every_key_that_may_change_on_going_on():
    known = flat_fields(PretrainConfig).keys() | flat_fields(FinetuneConfig).keys()
    assert known >= MAY_CHANGE
    text = (ROOT / "docs" / "resume.md").read_text()
    for key in MAY_CHANGE:
        section = key.partition(".")[0]
        assert f"`{key}`" in text or f"`{section}.*`" in text, key
