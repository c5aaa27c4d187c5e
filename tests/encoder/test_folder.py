"""The encoder folder: what is saved comes back, and what is damaged or foreign is refused."""

import ast
import copy
import json
import shutil

import pytest
import timm
import torch
import yaml
from torch import nn
from torch.nn.utils import parametrizations

import ssmast
from ssmast.encoder import load_encoder
from ssmast.files import sha256_of
from tests.encoder.test_encoder import RATE, encoder, make_encoder, noise

__all__ = ["encoder"]  # a fixture


@pytest.fixture
def folder(encoder, tmp_path):
    encoder.save(tmp_path / "encoder")
    return tmp_path / "encoder"


def test_a_loaded_encoder_gives_the_same_vectors(encoder, folder):
    loaded = ssmast.load_encoder(folder)
    clip = noise(20000)
    assert torch.equal(loaded.embed(clip, RATE), encoder.embed(clip, RATE))
    assert loaded.settings() == encoder.settings()
    assert loaded.info == encoder.info
    assert loaded.sha256 == json.loads((folder / "checksums.json").read_text())["model.safetensors"]
    assert not loaded.training
    assert sorted(file.name for file in folder.iterdir()) == [
        "README.md",
        "checksums.json",
        "config.json",
        "model.safetensors",
    ]


def test_timm_reads_the_folder(encoder, folder):
    model = timm.create_model(f"local-dir:{folder}", pretrained=True)
    log_mel = torch.randn(1, 1, 64, 96)
    wanted = encoder.backbone.eval()(log_mel)
    assert torch.equal(model.eval()(log_mel), wanted)


def test_the_card_tells_what_it_is(tmp_path):
    encoder = make_encoder()
    encoder.info = {"data": "a | b", "settings": {"optim": {"lr": 0.001}}}
    encoder.save(tmp_path / "e")
    card = (tmp_path / "e" / "README.md").read_text()
    for part in ("mast_nano", "16000 Hz", "freq+max", "a \\| b", '"lr": 0.001', "load_encoder"):
        assert part in card


@pytest.mark.parametrize("is_classifier", [False, True])
def test_the_code_on_the_card_imports_what_it_names(tmp_path, is_classifier):
    encoder = make_encoder()
    if is_classifier:
        encoder.info = {"classifier": {"multi_label": False, "heads": []}}
    encoder.save(tmp_path / "e")
    code = (
        (tmp_path / "e" / "README.md").read_text().partition("```python\n")[2].partition("```")[0]
    )
    nodes = list(ast.walk(ast.parse(code)))
    bound = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names = [node for node in nodes if isinstance(node, ast.Name)]
    bound |= {node.id for node in names if isinstance(node.ctx, ast.Store)}
    assert {node.id for node in names} - bound == {"waveform", "sample_rate"}


@pytest.mark.parametrize("key", ["objective", "method"])
def test_the_card_names_the_objective_and_no_other(tmp_path, key):
    encoder = make_encoder()
    for name, temperature in (("ss_mast", True), ("mine", False)):
        encoder.info = {"settings": {key: name, "loss": {"temperature": 0.1}}}
        encoder.save(tmp_path / "e")
        recipe = (tmp_path / "e" / "README.md").read_text().partition("## settings")[0]
        assert f"| objective | {name} |" in recipe
        assert ("| temperature |" in recipe) == temperature
        assert "NCE" not in recipe


@pytest.mark.parametrize(
    ("init", "base"),
    [
        ("imagenet", "timm/mvitv2_tiny.fb_in1k"),
        ("hf-hub:org/name", "org/name"),
        ("org/n@v1", "org/n"),
        ("none", None),
        ("tests/encoder", None),
        ("/tmp/runs/encoder", None),
    ],
)
def test_the_card_names_the_model_that_it_started_from(tmp_path, init, base):
    encoder = make_encoder("mast_tiny")
    encoder.info = {"settings": {"init": init}}
    encoder.save(tmp_path / "e")
    metadata = yaml.safe_load((tmp_path / "e" / "README.md").read_text().split("---")[1])
    assert metadata.get("base_model") == base


class Wrapped(nn.Module):
    """What LoRA puts in the place of a layer."""

    def __init__(self, layer):
        super().__init__()
        self.base_layer, self.low = layer, nn.Linear(layer.in_features, layer.out_features)

    def forward(self, x):
        return self.base_layer(x) + self.low(x)


class Quantised(nn.Linear):
    """What quantisers of weights put there: `weight` in 8 bits."""

    def __init__(self, layer):
        super().__init__(layer.in_features, layer.out_features)
        self.weight = nn.Parameter(layer.weight.to(torch.int8), requires_grad=False)

    def forward(self, x):
        return nn.functional.linear(x, self.weight.to(x.dtype), self.bias)


class Packed(nn.Module):
    """A state dict with something other than tensors, as torch.ao's."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def get_extra_state(self):
        return "packed"

    def forward(self, x):
        return self.layer(x)


def wrapped(backbone):
    backbone.stages[0].blocks[0].attn.qkv = Wrapped(backbone.stages[0].blocks[0].attn.qkv)


def quantised(backbone):
    backbone.stages[0].blocks[0].attn.qkv = Quantised(backbone.stages[0].blocks[0].attn.qkv)


def packed(backbone):
    backbone.stages[0].blocks[0].attn.qkv = Packed(backbone.stages[0].blocks[0].attn.qkv)


def weight_normed(backbone):
    parametrizations.weight_norm(backbone.stages[0].blocks[0].mlp.fc1)


@pytest.mark.parametrize("change", [wrapped, quantised, packed, weight_normed])
def test_an_adapted_encoder_is_refused_before_the_folder_is_replaced(encoder, folder, change):
    adapted = copy.deepcopy(encoder)
    change(adapted.backbone)
    adapted.embed(noise(9000), RATE)
    with pytest.raises(ValueError, match=r"adapted and would not load again: stages\.0.* merge"):
        adapted.save(folder)
    assert torch.equal(
        load_encoder(folder).embed(noise(9000), RATE), encoder.embed(noise(9000), RATE)
    )


def test_a_compiled_encoder_is_saved_as_the_one_that_was_compiled(encoder, tmp_path):
    compiled = copy.deepcopy(encoder)
    compiled.backbone = torch.compile(compiled.backbone, backend="eager")
    compiled.save(tmp_path / "e")
    assert load_encoder(tmp_path / "e").sha256 == encoder.sha256


def test_saving_replaces_an_encoder_and_nothing_else(encoder, folder, tmp_path):
    make_encoder(pooling="mean").save(folder)
    assert load_encoder(folder).pooling == "mean"
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("years of work")
    with pytest.raises(FileExistsError, match="holds files but no encoder"):
        encoder.save(tmp_path / "thesis")
    with pytest.raises(FileExistsError, match="is a file"):
        encoder.save(tmp_path / "thesis" / "chapter.txt")
    assert (tmp_path / "thesis" / "chapter.txt").read_text() == "years of work"
    (tmp_path / "empty").mkdir()
    encoder.save(tmp_path / "empty")
    load_encoder(tmp_path / "empty")


def test_a_failed_save_leaves_nothing_and_harms_nothing(encoder, folder, tmp_path, monkeypatch):
    before = (folder / "config.json").read_bytes()

    def full_disk(file):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("ssmast.files.os.fsync", full_disk)
    for target in (folder, tmp_path / "new"):
        with pytest.raises(OSError, match="No space left"):
            make_encoder(pooling="mean").save(target)
    assert (folder / "config.json").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["encoder"]


def test_info_that_json_cannot_hold_is_refused(tmp_path):
    encoder = make_encoder()
    encoder.info = {"data": object()}
    with pytest.raises(ValueError, match="must be plain JSON values"):
        encoder.save(tmp_path / "e")


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_damaged_file_is_named(folder, name):
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"{name} is damaged"):
        load_encoder(folder)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "checksums.json"])
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"no encoder folder: it has no {name}"):
        load_encoder(folder)


def test_a_file_without_a_checksum_is_not_loaded(folder):
    sums = json.loads((folder / "checksums.json").read_text())
    weights = bytearray((folder / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (folder / "model.safetensors").write_bytes(weights)
    sums.pop("model.safetensors")
    (folder / "checksums.json").write_text(json.dumps(sums))
    with pytest.raises(ValueError, match=r"damaged: it has no checksum of model\.safetensors"):
        load_encoder(folder)


def test_the_card_may_be_edited(folder):
    (folder / "README.md").write_text("my encoder")
    load_encoder(folder)


def test_the_run_folder_points_to_its_encoder(folder):
    with pytest.raises(FileNotFoundError, match=r"did you mean .*encoder"):
        load_encoder(folder.parent)


def test_a_run_that_has_not_ended_is_called_so(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(
        FileNotFoundError, match=r"a run that has not ended: go on with resume=auto"
    ):
        load_encoder(tmp_path)


def test_a_missing_folder_is_one_sentence(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no encoder folder at .*nowhere; wanted a folder"):
        load_encoder(tmp_path / "nowhere")


def rewrite_config(folder, change) -> None:
    """Change config.json as somebody would who publishes a folder: checksums included."""
    import hashlib

    config = json.loads((folder / "config.json").read_text())
    change(config)
    text = json.dumps(config).encode()
    (folder / "config.json").write_bytes(text)
    sums = json.loads((folder / "checksums.json").read_text())
    sums["config.json"] = hashlib.sha256(text).hexdigest()
    (folder / "checksums.json").write_text(json.dumps(sums))


@pytest.mark.parametrize(
    "change",
    [
        lambda config: config["model_args"].update(checkpoint_path="/tmp/evil.pt"),
        lambda config: config["model_args"].update(pretrained=True),
        lambda config: config.update(architecture="hf-hub:somebody/else"),
        lambda config: config["ssmast"].update(format=99),
    ],
)
def test_a_folder_cannot_make_us_load_anything_else(folder, change):
    rewrite_config(folder, change)
    with pytest.raises(ValueError, match="not for this version"):
        load_encoder(folder)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda config: config["model_args"].update(embed_dim=16), "do not make an encoder"),
        (lambda config: config.update(architecture="resnet18", model_args={}), "backbone must"),
        (lambda config: config.pop("ssmast"), "lacks ssmast"),
        (lambda config: config.update(ssmast=None), "damaged: ssmast is None"),
        (lambda config: config.update(architecture=7), "damaged: architecture is 7"),
        (lambda config: config["ssmast"].update(front_end=[]), "damaged: front_end is"),
        (
            lambda config: config["ssmast"].update(window_seconds=float("inf")),
            "must be above 0, got inf",
        ),
        (lambda config: config["ssmast"].pop("front_end"), "do not make an encoder"),
    ],
)
def test_a_config_that_does_not_fit_is_one_sentence(folder, change, sentence):
    rewrite_config(folder, change)
    with pytest.raises(ValueError, match=sentence):
        load_encoder(folder)


@pytest.mark.parametrize("key", ["channel_policy", "trim"])
def test_settings_of_a_newer_version_are_not_ignored(folder, key):
    rewrite_config(folder, lambda config: config["ssmast"].update({key: 1}))
    with pytest.raises(ValueError, match=rf"does not know its settings {key}, .* update ssmast"):
        load_encoder(folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_numbers_are_neither_saved_nor_loaded_nor_embedded(
    encoder, folder, tmp_path, value
):
    from safetensors.torch import load_file, save_file

    broken = copy.deepcopy(encoder)
    with torch.no_grad():
        broken.backbone.stages[0].blocks[0].mlp.fc1.bias[0] = value
    name = "stages.0.blocks.0.mlp.fc1.bias"
    with pytest.raises(ValueError, match="the embedding is not finite, though the sound is"):
        broken.embed(noise(9000), RATE)
    with pytest.raises(ValueError, match=f"hold NaN or infinity .{name}.*earlier checkpoint"):
        broken.save(folder)
    load_encoder(folder)  # still whole
    weights = load_file(folder / "model.safetensors")
    weights[name][0] = value
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    sums = json.loads((folder / "checksums.json").read_text())
    sums["model.safetensors"] = sha256_of(folder / "model.safetensors")
    (folder / "checksums.json").write_text(json.dumps(sums))
    with pytest.raises(ValueError, match=f"hold NaN or infinity .{name}"):
        load_encoder(folder)


def test_checksums_of_files_elsewhere_are_not_followed(folder):
    sums = json.loads((folder / "checksums.json").read_text())
    (folder / "checksums.json").write_text(json.dumps({**sums, "../../etc/passwd": "0"}))
    with pytest.raises(ValueError, match="damaged"):
        load_encoder(folder)


def test_a_hub_name_is_downloaded_and_a_mistyped_path_is_not(folder, tmp_path, monkeypatch):
    asked = []

    def download(repo, *, revision, allow_patterns):
        asked.append((repo, revision, tuple(sorted(allow_patterns))))
        if repo == "org/none":
            raise OSError("404 Client Error")
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    monkeypatch.chdir(tmp_path)
    files = ("README.md", "checksums.json", "config.json", "model.safetensors")
    files += ("preprocessor_config.json", "whitening.safetensors")
    load_encoder("org/name")
    load_encoder("hf-hub:org/name@v1")
    assert asked == [("org/name", None, files), ("org/name", "v1", files)]
    with pytest.raises(FileNotFoundError, match=r"neither a folder here nor .*404 Client Error"):
        load_encoder("org/none")
    with pytest.raises(FileNotFoundError, match="no encoder folder at encoder/nano"):
        load_encoder("encoder/nano")  # the folder `encoder` is here
    assert len(asked) == 3


def test_a_copy_of_the_folder_works(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "elsewhere" / "encoder")
    load_encoder(tmp_path / "elsewhere" / "encoder")
