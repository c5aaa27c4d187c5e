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
