"""Encoder folders of earlier versions still load, and give the embeddings that they gave."""

import json
from pathlib import Path

import pytest
import torch

from ssmast.encoder import load_encoder

from .make import RATE, machine, waveform

FOLDERS = sorted(Path(__file__).parent.glob("encoder_*/*/config.json"))


def test_the_first_version_is_kept():
    kept = {(file.parents[1].name, file.parent.name) for file in FOLDERS}
    assert {("encoder_0_1_0", "mast"), ("encoder_0_1_0", "ast")} <= kept


@pytest.mark.parametrize(
    "folder", [f.parent for f in FOLDERS], ids=lambda f: f"{f.parent.name}-{f.name}"
)
def test_an_old_folder_embeds_as_it_did(folder):
    """To the same bits where torch and the processor are those it was made on, else to 1e-6.

    1e-6 of the length of the vector: another order of summing moves single numbers by a few units
    of float32's last place, 1.2e-7. One thread, as the order of sums may depend on their number.
    """
    encoder = load_encoder(folder)
    wanted = json.loads(folder.with_suffix(".json").read_text(encoding="utf-8"))
    torch.set_num_threads(1)  # conftest.py sets it back
    frames, _ = encoder.embed_frames(waveform(), RATE)
    found = {"embedding": encoder.embed(waveform(), RATE)[0], "frames": frames[0, ::16]}
    for name, values in found.items():
        reference = torch.tensor(wanted[name], dtype=torch.float32)
        assert reference.std() > 0.1
        if wanted["made_on"] == machine():
            assert torch.equal(values, reference)
        assert (values - reference).norm() <= 1e-6 * reference.norm()
