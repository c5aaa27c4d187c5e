import importlib
import json
import re
import shutil
import subprocess
import sys
from collections import namedtuple
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest

from ssmast.command import StoppedError
from ssmast.doctor import CHECKS, CURES, findings, machine, main
from ssmast.doctor.finding import cures
from ssmast.settings import UsageError
from ssmast.training import show_views

DOCTOR = Path(machine.__file__).parent
DOC = Path(__file__).parents[1] / "docs" / "troubleshooting.md"
Usage = namedtuple("Usage", "total used free")
real_import, real_version = importlib.import_module, metadata.version


def codes(check):
    return [finding.code for finding in check() if finding.status == "problem"]


def fake_modules(monkeypatch, **modules):
    """What `importlib.import_module` gives: a module, or an error to raise."""

    def fake(name, *args):
        found = modules.get(name.replace(".", "_"))
        if isinstance(found, Exception):
            raise found
        return found or real_import(name, *args)

    monkeypatch.setattr(importlib, "import_module", fake)


def fake_versions(monkeypatch, **versions):
    def fake(name):
        found = versions.get(name.replace("-", "_"), "")
        if found is None:
            raise metadata.PackageNotFoundError(name)
        return found or real_version(name)

    monkeypatch.setattr(metadata, "version", fake)


def family(*, torch="2.14.1+cu130", torchvision="0.29.1+cu130", torchaudio="2.11.0+cu130"):
    def nms(*args):
        return None

    return {
        "torch": SimpleNamespace(__version__=torch, tensor=real_import("numpy").array),
        "torchvision": SimpleNamespace(__version__=torchvision, ops=SimpleNamespace(nms=nms)),
        "torchaudio": SimpleNamespace(
            __version__=torchaudio, functional=SimpleNamespace(melscale_fbanks=lambda **words: None)
        ),
    }


# Each case breaks one thing; the check must name exactly that.


def python_old(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "version_info", (3, 10, 4))
    return machine.check_python


def package_missing(monkeypatch, tmp_path):
    monkeypatch.setattr(machine, "requirements", lambda: {"soxr": ">=0.5,<1"})
    fake_versions(monkeypatch, soxr=None)
    return machine.check_packages


def package_version(monkeypatch, tmp_path):
    monkeypatch.setattr(machine, "requirements", lambda: {"soxr": ">=0.5,<1"})
    fake_versions(monkeypatch, soxr="1.1.0")
    return machine.check_packages


def package_broken(monkeypatch, tmp_path):
    monkeypatch.setattr(machine, "requirements", lambda: {"soxr": ">=0.5,<1"})
    fake_modules(monkeypatch, soxr=OSError("libsoxr.so.0: cannot open shared object file"))
    return machine.check_packages


def torch_family(monkeypatch, tmp_path):
    fault = RuntimeError("Detected that PyTorch and TorchAudio were compiled with ...")
    fake_modules(monkeypatch, **{**family(), "torchaudio": fault})
    return machine.check_torch_family


def decoder_missing(monkeypatch, tmp_path):
    from ssmast.audio import encode as formats

    monkeypatch.setitem(formats._WRITTEN, "mp3", ("MP3", "NO_SUCH_CODING"))
    return machine.check_decoders


def codecs_broken(monkeypatch, tmp_path):
    fake_versions(monkeypatch, torchcodec="0.17.0", onnx=None, ray=None, umap_learn=None)
    fake_modules(monkeypatch, torchcodec_decoders=RuntimeError("Could not load libtorchcodec"))
    return machine.check_extras


def fake_gpus(monkeypatch, count, *, ones=None, cpu=()):
    about = SimpleNamespace(name="GPU", total_memory=8 << 30)
    cuda = SimpleNamespace(
        is_available=lambda: count > 0,
        device_count=lambda: count,
        get_device_properties=lambda number: about,
        is_bf16_supported=lambda including_emulation: True,
    )
    torch = SimpleNamespace(
        cuda=cuda,
        version=SimpleNamespace(cuda=None),
        ones=ones,
        cpu=SimpleNamespace(get_capabilities=lambda: dict.fromkeys(cpu, True)),
        backends=SimpleNamespace(mps=SimpleNamespace(is_available=lambda: False)),
    )
    fake_modules(monkeypatch, torch=torch)


def gpu_unused(monkeypatch, tmp_path):
    monkeypatch.setattr(machine, "_NVIDIA", tmp_path)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    fake_gpus(monkeypatch, 0)
    return machine.check_gpus


def gpu_failed(monkeypatch, tmp_path):
    def ones(*shape, device):
        raise RuntimeError("CUDA error: out of memory")

    monkeypatch.setenv("HF_HOME", str(tmp_path))
    fake_gpus(monkeypatch, 1, ones=ones)
    return machine.check_gpus


def launch_size(monkeypatch, tmp_path):
    file = tmp_path / "accelerate" / "default_config.yaml"
    file.parent.mkdir()
    file.write_text("distributed_type: 'NO'\nnum_processes: 2\nuse_cpu: true\n", encoding="utf-8")
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    return lambda: machine.check_launch(0)


def threads(monkeypatch, tmp_path):
    monkeypatch.setenv("OMP_NUM_THREADS", "4096")
    return machine.check_cores


def memory_low(monkeypatch, tmp_path):
    memory = SimpleNamespace(available=100 << 20)
    fake_modules(monkeypatch, psutil=SimpleNamespace(virtual_memory=lambda: memory))
    monkeypatch.setattr(machine, "SHARED_MEMORY", tmp_path / "none")
    return machine.check_memory


def shm_small(monkeypatch, tmp_path):
    memory = SimpleNamespace(available=8 << 30)
    fake_modules(monkeypatch, psutil=SimpleNamespace(virtual_memory=lambda: memory))
    monkeypatch.setattr(machine, "SHARED_MEMORY", tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(64 << 20, 0, 64 << 20))
    return machine.check_memory


def disk_full(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(1 << 40, 0, 5 << 20))
    return machine.check_folders


def folder_unwritable(monkeypatch, tmp_path):
    (tmp_path / "runs").mkdir()
    monkeypatch.chdir(tmp_path)
    refuse_files_in(tmp_path / "runs", monkeypatch)
    return machine.check_folders


def cache_unwritable(monkeypatch, tmp_path):
    for variable in ("TORCH_HOME", "XDG_CACHE_HOME", "HF_HOME"):
        monkeypatch.setenv(variable, str(tmp_path))
    # A file where the folder should be refuses everybody, root too.
    (tmp_path / "file").write_text("", encoding="utf-8")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "file"))
    return machine.check_caches


def selftest_failed(monkeypatch, tmp_path):
    from ssmast.audio import LogMel

    whole = LogMel._log_mel
    monkeypatch.setattr(LogMel, "_log_mel", lambda *args: whole(*args) + 0.01)
    monkeypatch.setattr(machine, "SELF_TESTS", {"log-mel": machine.log_mel_of_a_sine})
    return machine.check_self_tests


def refuse_files_in(folder, monkeypatch):
    """As a read-only mount does; permissions would not stop root."""
    real = machine.tempfile.TemporaryFile

    def fake(*, dir):
        if Path(dir) == folder:
            raise PermissionError(13, "Permission denied")
        return real(dir=dir)

    monkeypatch.setattr(machine.tempfile, "TemporaryFile", fake)


CASES = [
    python_old, package_missing, package_version, package_broken, torch_family, decoder_missing,
    codecs_broken, gpu_unused, gpu_failed, launch_size, threads, memory_low, shm_small, disk_full,
    folder_unwritable, cache_unwritable, selftest_failed,
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_what_is_broken_is_named_with_its_cure(case, monkeypatch, tmp_path):
    found = [f for f in case(monkeypatch, tmp_path)() if f.status == "problem"]
    assert [finding.code for finding in found] == [case.__name__]
    assert found[0].cure == CURES[case.__name__]


def test_every_problem_has_a_case_a_cure_of_one_sentence_and_a_section_in_the_docs():
    assert [case.__name__ for case in CASES] == list(CURES)
    titles, *bodies = DOC.read_text(encoding="utf-8").split("\n## ")
    sections = {body.split("\n")[0].strip("`"): " ".join(body.split()) for body in bodies}
    assert list(sections) == list(CURES), titles
    for code, cure in CURES.items():
        assert sections[code].endswith(f"Cure: {cure}")
        assert cure.endswith(".")


@pytest.mark.parametrize(
    "modules",
    [
        {"torchvision": RuntimeError("operator torchvision::nms does not exist")},
        {"torchaudio": RuntimeError("Detected that PyTorch and TorchAudio were compiled with ...")},
        {"torchaudio": SimpleNamespace(__version__="2.11.0", functional=None)},
        {"torchvision": SimpleNamespace(__version__="0.29.1", ops=None)},
    ],
)
def test_a_family_of_torch_that_does_not_fit_is_named(modules, monkeypatch):
    fake_modules(monkeypatch, **{**family(), **modules})
    assert codes(machine.check_torch_family) == ["torch_family"]


@pytest.mark.parametrize("torchaudio", ["2.11.0+cu130", "2.11.1+cu132", "2.11.0"])
def test_a_family_that_works_is_no_problem_whatever_it_was_built_for(torchaudio, monkeypatch):
    fake_modules(monkeypatch, **family(torchaudio=torchaudio))
    assert codes(machine.check_torch_family) == []


def test_a_wheel_names_no_file_of_the_checkout():
    in_wheel = cures(in_checkout=False)
    assert in_wheel.keys() == CURES.keys()
    assert cures(in_checkout=True) == CURES  # as tests run in a checkout
    for cure in in_wheel.values():
        assert not re.search(r"constraints|checkout|clone|run\.py|make demo", cure)
    sources = [file.read_text(encoding="utf-8") for file in DOCTOR.glob("*.py")]
    assert not any("run.py" in source for source in sources)


def test_pretraining_that_fails_is_a_problem(monkeypatch):
    """As it was on every GPU: drawing the views failed before step 1."""
    monkeypatch.setattr(machine, "SELF_TESTS", {"pretraining": machine.pretraining})
    monkeypatch.setattr(show_views, "draw_panels", lambda *args, **words: 1 / 0)
    (found,) = machine.check_self_tests()
    assert found.code == "selftest_failed"
    assert found.text == "pretraining failed: ZeroDivisionError: division by zero"


@pytest.mark.parametrize(("flag", "said"), [("amx_bf16", True), ("avx512_bf16", True), ("avx2", 0)])
def test_a_cpu_that_multiplies_bfloat16_is_named(monkeypatch, tmp_path, flag, said):
    monkeypatch.setattr(machine, "_NVIDIA", tmp_path / "none")
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    fake_gpus(monkeypatch, 0, cpu=[flag, "sse2"])
    (found,) = machine.check_gpus()
    assert ("precision=bf16 trains faster" in found.text) == bool(said)


def test_stopped_in_its_self_test_it_speaks_of_no_run(monkeypatch):
    def stopped():
        raise StoppedError(15, "the state is saved, resume it with resume=auto")

    monkeypatch.setattr("ssmast.doctor.findings", lambda: findings([stopped]))
    with pytest.raises(StoppedError) as error:
        main([])
    assert str(error.value) == "stopped by SIGTERM"


def test_without_torch_every_check_still_answers(monkeypatch):
    missing = ModuleNotFoundError("No module named 'torch'", name="torch")
    fake_modules(monkeypatch, torch=missing)
    monkeypatch.setattr(machine, "requirements", lambda: {"torch": ">=2.11", "numpy": ">=1.26"})
    assert codes(machine.check_torch_family) == ["package_missing"]
    assert "problem" not in [finding.status for finding in machine.check_gpus()]


def test_a_check_that_fails_is_a_finding_and_the_others_go_on():
    def check_stars():
        raise KeyError("north")
        yield

    first, second = findings([check_stars, machine.check_python])
    assert (first.area, first.status, first.code) == ("stars", "problem", "selftest_failed")
    assert second.area == "python"


def test_every_launch_that_accelerate_can_start_is_no_problem(monkeypatch, tmp_path):
    file = tmp_path / "accelerate" / "default_config.yaml"
    file.parent.mkdir()
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    file.write_text("distributed_type: MULTI_GPU\nnum_processes: 4\n", encoding="utf-8")
    assert codes(lambda: machine.check_launch(4)) == []
    assert codes(lambda: machine.check_launch(2)) == ["launch_size"]


def test_the_command_starts_when_nothing_but_python_can_be_imported():
    """Torch, numpy and yaml raise; doctor names them and ends with status 1."""
    code = """
import sys
class Broken:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"torch", "numpy", "yaml", "psutil", "soundfile"}:
            raise ImportError(f"{name} is broken")
sys.meta_path.insert(0, Broken())
from ssmast.cli import main
sys.exit(main(["doctor", "format=json"]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 1, done.stderr
    said = json.loads(done.stdout)
    texts = " ".join(row["text"] for row in said["findings"] if row["status"] == "problem")
    for name in ("torch", "numpy", "yaml", "psutil", "soundfile"):
        assert f"{name} is broken" in texts
    assert said["problems"] == sum(row["status"] == "problem" for row in said["findings"])


def test_this_machine_is_ready(capsys, monkeypatch):
    """But for what a shared machine may lack at the moment: its memory, disk and folders."""
    shared = {machine.check_memory, machine.check_folders, machine.check_caches}
    kept = tuple(check for check in CHECKS if check not in shared)
    monkeypatch.setattr("ssmast.doctor.findings", lambda: findings(kept))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    status = main([])
    said = capsys.readouterr().out
    assert status == 0, said
    assert "wav, flac, ogg, opus, mp3 decode correctly" in said
    assert said.count("\nok       self-test") == 2
    assert "pretraining: two steps on " in said
    assert said.endswith("no problems\n")


def test_another_format_is_a_usage_error():
    with pytest.raises(UsageError, match="text or json"):
        main(["format=xml"])
