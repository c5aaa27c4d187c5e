"""What other people's harnesses say of an encoder folder; not part of `make test`.

    make harnesses ENCODER=FOLDER

runs timm's own tests/test_models.py, from its source distribution, on the models registered here;
it makes an environment with hearvalidator 2021.0.6, heareval 2021.1.3, xares 0.1.3 and mteb 2.26.24
beside ssmast and runs `python tests/acceptance/harnesses.py FOLDER` in it. Exit status 1 if one of
them is not content.

heareval gets two toy tasks, one with train, valid and test and one with three folds, and one whose
labels were shuffled: an encoder that sees through labels that mean nothing cheats. mteb gets
its own made-up audio task, with four tones.
"""

import json
import logging
import os
import random
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import numpy as np
import soundfile

RATE = 16000
PITCHES = {"low": 220.0, "middle": 700.0, "high": 2400.0}
logger = logging.getLogger("harnesses")

# Chance is 1/3.
WANTED, CHANCE = 0.8, 0.55


def main(encoder: str) -> int:
    encoder = str(Path(encoder).absolute())
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        # heareval and the validator import tensorflow only to tell its models from PyTorch's.
        stub = root / "stub" / "tensorflow"
        stub.mkdir(parents=True)
        (stub / "__init__.py").write_text("class Module: ...\nfloat32 = 'float32'\n")
        paths = [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", ""), str(stub.parent)]
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, paths)),
            "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1",
        }
        checks = {
            "hear-validator": lambda: _validator(encoder, environment),
            "X-ARES check_audio_encoder": lambda: _xares(encoder, environment),
            "mteb.evaluate": lambda: _mteb(encoder, environment),
            "heareval": lambda: _heareval(encoder, root, environment),
            "timm's tests/test_models.py": lambda: _timm(root, environment),
        }
        content = {name: check() for name, check in checks.items()}
    for name, good in content.items():
        logger.info("%s: %s", name, "passed" if good else "FAILED")
    return 0 if all(content.values()) else 1


# What timm's tests ask for and these models do not give, by part of the test's name.
TIMM_SKIPPED = {
    "torchscript": "TorchScript is deprecated; docs/use.md exports by ONNX and torch.export",
    "_fx": "sizes are read from the input, which symbolic tracing does not follow",
    "forward_features and (mast or frame)": "the two axes have reductions of their own, timm one",
}


def _timm(root: Path, environment: dict[str, str]) -> bool:
    found = sorted(Path(sys.prefix).glob("sdist/timm-*.tar.gz"))
    if not found:
        logger.info("timm: no source distribution in %s/sdist", sys.prefix)
        return False
    with tarfile.open(found[0]) as archive:
        for name in ("test_models.py", "conftest.py"):
            member = archive.extractfile(f"{found[0].name.removesuffix('.tar.gz')}/tests/{name}")
            assert member is not None
            text = member.read().decode()
            # The models whose intermediate features are tested are chosen by their module.
            text = text.replace("FEAT_INTER_FILTERS = [", "FEAT_INTER_FILTERS = ['family',")
            (root / name).write_text(text)
    chosen = "(ast_nano or frame_nano)"
    for part, why in TIMM_SKIPPED.items():
        logger.info("timm: tests of %r are skipped: %s", part, why)
        chosen += f" and not ({part})"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "ssmast.model", "test_models.py"]
    return subprocess.run([*command, "-k", chosen], cwd=root, env=environment).returncode == 0


def _validator(encoder: str, environment: dict[str, str]) -> bool:
    words = ["ssmast.hear", "--model", encoder, "-d", "cpu"]
    return _run([sys.executable, "-m", "hearvalidator.validate", *words], environment)


def _xares(encoder: str, environment: dict[str, str]) -> bool:
    code = (
        "import sys; from ssmast.adapters import xares_encoder;"
        "from xares.audio_encoder_checker import check_audio_encoder;"
        "sys.exit(not check_audio_encoder(xares_encoder(sys.argv[1])()))"
    )
    return _run([sys.executable, "-c", code, encoder], environment)


def _mteb(encoder: str, environment: dict[str, str]) -> bool:
    # Its own made-up audio task, with sounds that need no decoder.
    code = """
import sys, mteb, numpy as np
from datasets import Dataset, DatasetDict
from mteb.mocks.mock_tasks import MockAudioClassification
from mteb.models.models_protocols import EncoderProtocol
from ssmast.adapters import MtebEncoder

class Toy(MockAudioClassification):
    def load_data(self, **_):
        time = np.arange(8000) / 16000
        tones = [0.1 * np.sin(2 * np.pi * pitch * time) for pitch in (300, 320, 2000, 2100)]
        part = {
            "audio": [{"array": tone, "sampling_rate": 16000} for tone in tones] * 3,
            "label": [0, 0, 1, 1] * 3,
        }
        self.dataset = DatasetDict(
            {"train": Dataset.from_dict(part), "test": Dataset.from_dict(part)}
        )
        self.data_loaded = True

model = MtebEncoder(sys.argv[1])
assert isinstance(model, EncoderProtocol)
found = mteb.evaluate(model, Toy(), cache=None, co2_tracker=False)
score = found.task_results[0].get_score()
print(found.model_name, score)
sys.exit(int(score < 0.9))
"""
    return _run([sys.executable, "-c", code, encoder], environment)


def _heareval(encoder: str, root: Path, environment: dict[str, str]) -> bool:
    tasks = root / "tasks"
    _write_task(tasks / "pitch-v1-full", folds=0)
    _write_task(tasks / "pitchfolds-v1-full", folds=3)
    _write_task(tasks / "shuffled-v1-full", folds=0, shuffled=True)
    runner = [sys.executable, "-m", "heareval.embeddings.runner", "ssmast.hear"]
    words = ["--model", encoder, "--tasks-dir", str(tasks), "--task", "all"]
    if not _run([*runner, *words, "--embeddings-dir", str(root / "embeddings")], environment):
        return False
    done = (root / "embeddings" / "ssmast.hear").glob("*/.done.embeddings")
    found = sorted(str(mark.parent) for mark in done)
    predict = [sys.executable, "-m", "heareval.predictions.runner", *found, "--grid-points", "2"]
    if not _run(predict, environment):
        return False
    scores = {
        path.parent.name: json.loads(path.read_text())
        for path in (root / "embeddings").rglob("test.predicted-scores.json")
    }
    good = len(scores) == 3
    for name, content in sorted(scores.items()):
        mean = (
            content["aggregated_scores"]["test_score_mean"]
            if "aggregated_scores" in content
            else content["test"]["test_score"]
        )
        limit = f"at most {CHANCE}" if name.startswith("shuffled") else f"at least {WANTED}"
        logger.info("heareval %s: accuracy %.3f (%s)", name, mean, limit)
        good &= mean <= CHANCE if name.startswith("shuffled") else mean >= WANTED
    return good


def _write_task(folder: Path, *, folds: int, shuffled: bool = False) -> None:
    """A HEAR task of three pitches, 0.5 s a clip."""
    rng, labels = np.random.default_rng(0), list(PITCHES)
    parts = [f"fold{n:02d}" for n in range(folds)] if folds else ["train", "valid", "test"]
    metadata = {
        "task_name": folder.name.split("-")[0],
        "version": "v1",
        "embedding_type": "scene",
        "prediction_type": "multiclass",
        "split_mode": "new_split_kfold" if folds else "trainvaltest",
        "sample_duration": 0.5,
        "evaluation": ["top1_acc"],
        "splits": parts,
        "mode": "full",
        "nfolds": folds or None,
    }
    folder.mkdir(parents=True)
    (folder / "task_metadata.json").write_text(json.dumps(metadata))
    rows = "".join(f"{index},{label}\n" for index, label in enumerate(labels))
    (folder / "labelvocabulary.csv").write_text("idx,label\n" + rows)
    for part in parts:
        (folder / str(RATE) / part).mkdir(parents=True)
        truth = {}
        for number in range(45):
            label = labels[number % 3]
            time = np.arange(RATE // 2) / RATE
            tone = np.sin(2 * np.pi * PITCHES[label] * rng.uniform(0.9, 1.1) * time)
            sound = 0.2 * tone + 0.02 * rng.standard_normal(len(time))
            name = f"{number:03d}.wav"
            soundfile.write(folder / str(RATE) / part / name, sound, RATE)
            truth[name] = [label]
        if shuffled:
            answers = list(truth.values())
            random.Random(0).shuffle(answers)
            truth = dict(zip(truth, answers, strict=True))
        (folder / f"{part}.json").write_text(json.dumps(truth))


def _run(command: list[str], environment: dict[str, str]) -> bool:
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1200)
    said = (done.stdout + done.stderr).strip().splitlines()
    logger.info("%s: exit status %d", " ".join(command[1:4]), done.returncode)
    for line in said[-12:] if done.returncode == 0 else said[-60:]:
        logger.info("    %s", line)
    return done.returncode == 0


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    sys.exit(main(sys.argv[1]))
