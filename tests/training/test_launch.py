"""The launch: precision, what a GPU may round, and gradients that are scaled."""

import os
from types import SimpleNamespace

import pytest
import torch

from ssmast.audio.segments import SegmentBatch
from ssmast.evaluation import processes
from ssmast.training.config import Optim
from ssmast.training.launch import gpu_precision, start_accelerator
from ssmast.training.step import TrainingState
from tests.training.test_ss_mast import _batch, _config
from tests.training.test_ss_mast import _trainer as ss_mast
from tests.training.test_ssast import _batch as ssast_batch
from tests.training.test_ssast import _trainer as ssast


@pytest.fixture
def flags_as_before():
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32, cudnn.deterministic
    threads, workspace = torch.get_num_threads(), os.environ.get("CUBLAS_WORKSPACE_CONFIG")
    yield
    matmul.allow_tf32, cudnn.allow_tf32, cudnn.deterministic = before
    torch.use_deterministic_algorithms(False)
    torch.backends.cuda.enable_cudnn_sdp(True)
    torch.set_num_threads(threads)
    if workspace is None:
        os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)


@pytest.mark.parametrize(
    ("capability", "emulates", "wanted"),
    [
        ((9, 0), True, "bf16"),
        ((8, 0), True, "bf16"),
        ((7, 5), False, "fp16"),
        ((6, 1), False, "fp32"),
    ],
)
def test_a_gpu_trains_in_what_it_has(monkeypatch, capability, emulates, wanted):
    def is_bf16_supported(including_emulation=True):
        return including_emulation or emulates

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", is_bf16_supported)
    assert gpu_precision() == wanted


def test_fp16_without_a_gpu_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="precision=fp16 needs a GPU; use precision=bf16 or fp32"):
        start_accelerator(precision="fp16", processes=0, threads=1)


@pytest.mark.usefixtures("flags_as_before")
@pytest.mark.parametrize("on", [False, True])
def test_kernels_are_chosen_as_it_is_asked_for(on):
    asked = {"tf32": on, "deterministic": on, "cudnn_attention": on}
    start_accelerator(precision="fp32", processes=0, threads=1, **asked)
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    assert (matmul.allow_tf32, cudnn.allow_tf32, cudnn.deterministic) == (on, on, on)
    assert torch.are_deterministic_algorithms_enabled() == on
    assert torch.backends.cuda.cudnn_sdp_enabled() == on


def _trained(trainer: TrainingState, batches: list[SegmentBatch], scale: float) -> torch.Tensor:
    """All weights after some steps whose gradients are scaled; 0 for none."""
    if scale:
        trainer.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    for batch in batches:
        result = trainer.train_step(batch)
        assert not result.skipped
    return torch.cat([p.flatten() for p in trainer.objective.parameters()])


def test_scaled_gradients_train_the_same_bits():
    """A power of two is exact, so what differs is a gradient that was scaled and not unscaled."""
    optim = Optim(gradient_accumulation_steps=2)
    batches = [_batch(seed) for seed in range(2)]
    found = [_trained(ss_mast(_config(optim=optim)), batches, scale) for scale in (0, 2.0**12)]
    assert torch.equal(*found)
    words, batches = "optim.gradient_accumulation_steps=2", [ssast_batch(seed=i) for i in range(2)]
    found = [_trained(ssast(words), batches, scale) for scale in (0, 2.0**12)]
    assert torch.equal(*found)


def test_a_scale_that_is_too_large_is_halved_and_the_step_left_out():
    trainer = ss_mast(_config())
    trainer.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127)
    before = [p.clone() for p in trainer.objective.parameters()]
    result = trainer.train_step(_batch())
    assert (result.skipped, result.rescaled) == (True, True)
    assert trainer.scaler.get_scale() == 2.0**126
    assert trainer.numbers(result)["loss_scale"] == 2.0**126
    assert all(map(torch.equal, before, trainer.objective.parameters()))
    # At a scale of 1 the clips are at fault, as without a scaler.
    trainer.scaler = torch.amp.GradScaler("cpu", init_scale=1.0)
    broken = _batch()
    broken.waveform[0] = float("inf")
    result = trainer.train_step(broken)
    assert (result.skipped, result.rescaled) == (True, False)


def test_the_scale_is_part_of_a_checkpoint(tmp_path):
    from ssmast.training.run_folder import RunFolder

    trainer, again = ss_mast(_config()), ss_mast(_config())
    trainer.scaler = torch.amp.GradScaler("cpu", init_scale=64.0, growth_interval=2)
    again.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=2)
    trainer.train_step(_batch())
    trainer.save(RunFolder(path=tmp_path))
    [saved] = (tmp_path / "checkpoints").iterdir()
    again.load_(saved)
    assert again.scaler.state_dict() == trainer.scaler.state_dict()
    again.train_step(_batch(1))
    assert again.scaler.get_scale() == 128.0  # the second step in a row that was finite


@pytest.mark.usefixtures("flags_as_before")
def test_a_second_run_in_a_process_may_have_another_precision():
    for precision in ("fp32", "bf16", "fp32"):
        found = start_accelerator(precision=precision, processes=0, threads=1)
        assert found.mixed_precision == {"fp32": "no"}.get(precision, precision)


@pytest.mark.parametrize("uuids", [("a", "a"), ("a", "b")])
def test_each_process_needs_a_gpu_of_its_own(monkeypatch, uuids):
    state = SimpleNamespace(device=torch.device("cuda:0"))
    properties = SimpleNamespace(uuid=uuids[0])
    monkeypatch.setattr(processes, "PartialState", lambda: state)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setattr(
        processes, "joined_lists", lambda own: [*own, *((host, uuids[1]) for host, _ in own)]
    )
    check = processes.refuse_shared_gpus.__wrapped__
    if len({*uuids}) == 2:
        check()
    else:
        with pytest.raises(ValueError, match=r"2 processes share 1 GPU\(s\).*--num_processes"):
            check()
