"""To the Hub and back, over a stand-in of its HTTP interface."""

import os
import subprocess
import sys

import pytest

from tests.hub import Hub

from .test_encoder import make_encoder

# In a process of its own: huggingface_hub reads its address once, on import.
SCRIPT = """
import sys
import ssmast, timm, torch
from ssmast.encoder.folder import push_to_hub

folder = sys.argv[1]
print(push_to_hub(folder, "org/name", token="hf_none"))
here, there = ssmast.load_encoder(folder), ssmast.load_encoder("org/name")
clip = torch.linspace(-0.5, 0.5, 9000)
assert torch.equal(here.embed(clip, 16000), there.embed(clip, 16000))
log_mel = torch.randn(1, 1, 64, 96)
local = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
hub = timm.create_model("hf-hub:org/name", pretrained=True).eval()
assert torch.equal(hub(log_mel), here.backbone(log_mel))
assert torch.equal(local(log_mel), here.backbone(log_mel))
for name in ("org/none", "org/name@missing"):
    try:
        ssmast.load_encoder("org/none")
    except FileNotFoundError as error:
        assert "neither a folder here nor" in str(error)
    else:
        raise AssertionError(name)
"""


@pytest.fixture
def hub():
    hub = Hub()
    yield hub
    hub.close()


def test_what_is_pushed_comes_back_bit_equal(hub, tmp_path):
    make_encoder().save(tmp_path / "encoder", extra={"model.onnx": b"graph"})
    (tmp_path / "encoder" / "notes.txt").write_text("private")
    environment = {
        **os.environ,
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(tmp_path / "hf"),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "NO_PROXY": "127.0.0.1",
    }
    environment.pop("HF_HUB_OFFLINE", None)
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path / "encoder")],
        env=environment,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "/org/name/commit/" in done.stdout
    pushed = hub.repos["org/name"]
    assert sorted(name for name in pushed if name != ".gitattributes") == [
        "README.md", "checksums.json", "config.json", "model.onnx", "model.safetensors",
    ]  # fmt: skip
    assert pushed["model.safetensors"] == (tmp_path / "encoder" / "model.safetensors").read_bytes()


def test_a_damaged_folder_is_not_pushed(tmp_path):
    from ssmast.encoder.folder import push_to_hub

    make_encoder().save(tmp_path / "e")
    (tmp_path / "e" / "model.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match="damaged"):
        push_to_hub(tmp_path / "e", "org/name")
