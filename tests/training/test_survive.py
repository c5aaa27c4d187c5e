"""A run that is killed, stopped, orphaned or out of disk loses nothing. Real processes."""

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from ssmast.training.checkpoint import checkpoints, newest_checkpoint, verify_checkpoint
from ssmast.training.metrics_log import read_metrics
from tests.training.processes import DOOR, ROOT, SMALL, Group, write_tones

pytestmark = pytest.mark.slow

_TROUBLED = Path(__file__).parent / "troubled_run.py"
# Every source of state at work: drop-path, patch-drop, mixup, waveform augmentation, BatchNorm.
_FULL = (
    *SMALL, "steps=14", "checkpoint_every=1", "drop_path=0.2", "head.norm=batch",
    "views.waveform_augment=0.5", "views.mixup_memory=8",
    "loss.learn_temperature=true", "optim.gradient_accumulation_steps=2", "batch_size=8",
    "patch_drop.mode=random",
)  # fmt: skip


@pytest.fixture(scope="module")
def audio(tmp_path_factory) -> Path:
    return write_tones(tmp_path_factory.mktemp("audio"))


def _final_sums(run: Path) -> dict[str, str]:
    """SHA-256 of every tensor file of the last checkpoint."""
    last = checkpoints(run / "checkpoints")[-1]
    verify_checkpoint(last)
    return {
        file.name: hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(last.glob("*.safetensors"))
    }


def _losses(run: Path) -> list[float]:
    return [row["loss"] for row in read_metrics(run / "metrics.jsonl")]


def _until(ready: Callable[[], bool], group: Group | None = None, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < deadline
        assert group is None or any(member.poll() is None for member in group.members)
        time.sleep(0.05)


def _logged(run: Path, lines: int) -> Callable[[], bool]:
    return lambda: len(read_metrics(run / "metrics.jsonl")) >= lines


def test_killed_at_ten_random_points_with_two_processes_it_ends_in_the_same_bits(audio, tmp_path):
    words = [*_FULL, f"data={audio}"]
    assert Group(2, _TROUBLED, *words, f"run={tmp_path / 'whole'}").wait() == [0, 0]
    whole = _final_sums(tmp_path / "whole")
    assert len(whole) == 5
    draw = random.Random(7)
    run = tmp_path / "killed"
    steps_seen = set()
    for number in range(10):
        # A save is nine flushes; the points lie in its files, its folder, and after its rename.
        in_save = number % 2 == 0
        point = (
            f"write {draw.randint(1, 18)} {draw.random():.2f}"
            if in_save
            else f"step {draw.randint(1, 3)}"
        )
        workers = draw.choice([0, 1])  # may change from one resume to the next
        group = Group(
            2, _TROUBLED, *words, f"run={run}", "resume=auto", f"workers={workers}", KILL_AT=point
        )
        _until(lambda group=group: any(member.poll() is not None for member in group.members))
        assert any(member.poll() == -signal.SIGKILL for member in group.members), point
        group.kill()
        group.wait()
        newest = newest_checkpoint(run / "checkpoints")
        steps_seen.add(newest.name if newest else "none")
    assert len(steps_seen) > 4  # the run moved on between the kills
    assert Group(2, _TROUBLED, *words, f"run={run}", "resume=auto").wait() == [0, 0]
    assert _final_sums(run) == whole
    assert _losses(run) == _losses(tmp_path / "whole")
    assert (run / "report.html").is_file()
    assert not list((run / "checkpoints").glob(".partial-*"))


def test_as_many_micro_batches_on_one_two_or_three_processes_give_the_same_bits(audio, tmp_path):
    words = [*SMALL, "batch_size=12", "drop_path=0.2", f"data={audio}"]
    for size in (1, 2, 3):
        run = tmp_path / str(size)
        group = Group(
            size, DOOR, *words, f"run={run}", f"optim.gradient_accumulation_steps={6 // size}"
        )
        assert group.wait() == [0] * size
    for size in (2, 3):
        assert _final_sums(tmp_path / str(size)) == _final_sums(tmp_path / "1")
        assert _losses(tmp_path / str(size)) == _losses(tmp_path / "1")


def test_one_two_and_three_processes_agree_to_1e_6(audio, tmp_path):
    words = [*SMALL, "batch_size=12", "optim.lr=1e-5", f"data={audio}"]
    for size in (1, 2, 3):
        assert Group(size, DOOR, *words, f"run={tmp_path / str(size)}").wait() == [0] * size
    one = _losses(tmp_path / "1")
    assert len(one) == 6
    for size in (2, 3):
        assert _losses(tmp_path / str(size)) == pytest.approx(one, rel=1e-6)


def test_a_run_goes_on_with_another_number_of_processes(audio, tmp_path):
    words = [*SMALL, "optim.lr=1e-5", f"data={audio}"]
    assert Group(1, DOOR, *words, f"run={tmp_path / 'whole'}").wait() == [0]
    run = tmp_path / "changed"
    group = Group(1, _TROUBLED, *words, f"run={run}", KILL_AT="step 4")
    assert group.wait() == [-signal.SIGKILL]
    assert Group(2, DOOR, *words, f"run={run}", "resume=auto").wait() == [0, 0]
    assert _losses(run) == pytest.approx(_losses(tmp_path / "whole"), rel=1e-6)


_LONG = (*SMALL, "steps=4000", "checkpoint_every=0")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("size", [1, 2])
def test_a_signal_in_training_ends_in_a_checkpoint(audio, tmp_path, number, size):
    run = tmp_path / "run"
    group = Group(size, DOOR, *_LONG, f"data={audio}", f"run={run}", "workers=1")
    _until(_logged(run, 4), group)
    for member in group.members:
        member.send_signal(number)
    assert group.wait(60) == [128 + number] * size
    [saved] = checkpoints(run / "checkpoints")
    verify_checkpoint(saved)
    assert json.loads((saved / "state.json").read_text())["step"] >= 4
    assert f"stopped by {signal.Signals(number).name}; the state is saved" in group.said[0]


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("size", [1, 2])
def test_a_signal_while_waiting_for_data_ends_in_a_checkpoint(audio, tmp_path, workers, size):
    run = tmp_path / "run"
    words = [*_LONG, f"data={audio}", f"run={run}", f"workers={workers}"]
    # In the fourth step, and with two processes in the first one's share: the other waits for it.
    group = Group(size, _TROUBLED, *words, BLOCK="data 13" if size == 1 else "data 14")
    _until(_logged(run, 3), group)
    time.sleep(2)
    assert len(read_metrics(run / "metrics.jsonl")) == 3
    for member in group.members:
        member.send_signal(signal.SIGTERM)
    assert group.wait(30) == [143] * size
    [saved] = checkpoints(run / "checkpoints")
    verify_checkpoint(saved)
    assert json.loads((saved / "state.json").read_text())["step"] == 3


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_before_the_first_step_ends_at_once(audio, tmp_path, number):
    run = tmp_path / "run"
    group = Group(1, _TROUBLED, *_LONG, f"data={audio}", f"run={run}", BLOCK="statistics")
    _until((run / "config.yaml").is_file, group)
    time.sleep(1)
    group.members[0].send_signal(number)
    assert group.wait(30) == [128 + number]
    assert not checkpoints(run / "checkpoints")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
@pytest.mark.parametrize("size", [1, 2])
def test_a_launcher_that_is_killed_leaves_a_checkpoint_and_no_orphan(audio, tmp_path, size, number):
    run = tmp_path / "run"
    launcher = [sys.executable, "-m", "accelerate.commands.launch"]
    if size > 1:
        launcher += ["--multi_gpu", "--num_processes", str(size), "--main_process_port", "0"]
    process = subprocess.Popen(
        [*launcher, str(DOOR), *_LONG, f"data={audio}", f"run={run}"],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        start_new_session=True,
    )
    try:
        _until(_logged(run, 3))
        process.send_signal(number)
        assert process.wait(60) != 0
        _until(lambda: bool(checkpoints(run / "checkpoints")), seconds=30)
        time.sleep(1)
        verify_checkpoint(checkpoints(run / "checkpoints")[-1])
        after = len(read_metrics(run / "metrics.jsonl"))
        time.sleep(2)
        assert len(read_metrics(run / "metrics.jsonl")) == after  # nobody trains on
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("where", ["embed", "probe"])
def test_a_signal_in_probing_ends_at_once(tmp_path, number, where):
    sounds = tmp_path / "set"
    clips = sorted(write_tones(sounds, num=24).rglob("*.wav"))
    lines = ["path,label,split"]
    for i, clip in enumerate(clips):
        split = ("train", "valid", "test")[i // 2 % 3]
        lines.append(f"{clip.relative_to(sounds)},{i % 2},{split}")
    (sounds / "metadata.csv").write_text("\n".join(lines) + "\n")
    out = tmp_path / "out"
    words = [f"data={sounds}", "encoder=log_mel", f"out={out}"]
    group = Group(1, _TROUBLED, *words, BLOCK=where)
    assert group.members[0].stderr is not None
    group.members[0].stderr.readline()  # "task 1 of 1": it has begun
    time.sleep(3)
    group.members[0].send_signal(number)
    assert group.wait(30) == [128 + number]
    assert f"stopped by {signal.Signals(number).name}" in group.said[0]
    assert "Traceback" not in group.said[0]
    assert not list(out.glob("*.json"))


def test_a_full_disk_costs_a_checkpoint_but_not_the_run(audio, tmp_path):
    """A file size limit stands in for a full disk; a later save works again."""
    run = tmp_path / "run"
    words = [*SMALL, f"data={audio}", f"run={run}"]
    code = (
        "import resource, signal, sys\n"
        "from ssmast.command import run_command\n"
        "from ssmast.training import pretrain\n"
        "from ssmast.training.step import TrainingState\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "step = TrainingState.train_step\n"
        "def train_step(self, segments):\n"
        "    limit = 20_000 if FULL[0] <= self.step + 1 <= FULL[1] else -1\n"
        "    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, -1))\n"
        "    return step(self, segments)\n"
        "TrainingState.train_step = train_step\n"
        "sys.exit(run_command(pretrain.main, sys.argv[1:], name='ssmast pretrain'))\n"
    )
    script = tmp_path / "full.py"
    script.write_text("FULL = (4, 4)\n" + code)
    group = Group(2, script, *words)
    assert group.wait() == [0, 0], group.said[0]
    assert "step 4: the checkpoint could not be written" in group.said[0]
    assert "earlier ones are untouched and the run continues" in group.said[0]
    assert [path.name for path in checkpoints(run / "checkpoints")] == ["00000002", "00000006"]
    script.write_text("FULL = (6, 6)\n" + code)
    last = Group(2, script, *words[:-1], f"run={tmp_path / 'last'}")
    assert last.wait() == [1, 1]
    assert "cannot be written" in last.said[0]
    assert "Traceback" not in last.said[0]
    newest = newest_checkpoint(tmp_path / "last" / "checkpoints")
    assert newest is not None
    assert newest.name == "00000004"
