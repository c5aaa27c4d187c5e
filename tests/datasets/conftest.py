import csv
import json
import shutil

import numpy as np
import pytest
import soundfile

from ssmast.audio.corpus.table import read_task_file
from ssmast.datasets import prepare_task


class Mini:
    """A miniature of an official layout, made file by file."""

    def __init__(self, root):
        self.root = root

    def touch(self, *names):
        for name in names:
            path = self.root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"")

    def text(self, name, content):
        self.touch(name)
        (self.root / name).write_text(content, encoding="utf-8")

    def json(self, name, content):
        self.text(name, json.dumps(content))

    def sound(self, name, seconds=0.25, rate=16000, hz=440.0):
        self.touch(name)
        time = np.arange(round(seconds * rate)) / rate
        soundfile.write(self.root / name, 0.5 * np.sin(2 * np.pi * hz * time), rate)

    def build(self, task, **options):
        """(rows, facts) of the set that comes out."""
        out = self.root.parent / "out"
        if read_task_file(out).get("task") != task:
            shutil.rmtree(out, ignore_errors=True)
        report = prepare_task(task, root=self.root, out=out, options=options)
        return self.rows(out), report.facts

    @staticmethod
    def rows(out):
        with (out / "metadata.csv").open(encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))


@pytest.fixture
def mini(tmp_path):
    (tmp_path / "root").mkdir()
    return Mini(tmp_path / "root")
