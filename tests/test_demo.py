"""The demo's commands, without what it trains."""

import importlib.util

import pytest

from ssmast import demo


@pytest.mark.parametrize("installed", [True, False])
def test_onnx_is_exported_only_where_its_extra_is_installed(tmp_path, monkeypatch, installed):
    (tmp_path / "audio").mkdir()
    (tmp_path / "audio" / "0.wav").touch()
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: object() if installed else None)
    ran = {}
    for name in ("finetune", "export", "index", "search"):
        monkeypatch.setattr(demo, name, lambda words, name=name: ran.setdefault(name, words))
    demo._use(tmp_path / "run", tmp_path)
    assert list(ran) == ["finetune", "export", "index", "search"]
    assert ("onnx=true" in ran["export"]) == installed


def test_lines_for_ones_own_sounds_begin_by_making_ssmast_a_command(tmp_path, monkeypatch):
    (tmp_path / "env/bin").mkdir(parents=True)
    (tmp_path / "env/bin/activate").touch()
    monkeypatch.setattr(demo.sys, "prefix", str(tmp_path / "env"))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert demo._activation() == [f"source {tmp_path}/env/bin/activate"]
    monkeypatch.chdir(tmp_path)
    assert demo._activation() == ["source env/bin/activate"]
    (tmp_path / "ssmast").touch(mode=0o755)
    assert demo._activation() == []
