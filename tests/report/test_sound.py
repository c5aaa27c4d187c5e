import base64
import io
import tarfile

import numpy as np
import pytest
import soundfile

from ssmast.audio.encode import encode_sound
from ssmast.report.clusters_map import playable
from tests.sets import write_set


def decode(address):
    head, _, body = address.partition(",")
    assert head == "data:audio/ogg;base64"
    return soundfile.read(io.BytesIO(base64.b64decode(body)))


def play(folder, names, page, **changes):
    settings = {"max_bytes": 10**6, "max_seconds": 5.0, **changes}
    return playable(folder, names, list(range(len(names))), page=page, **settings)


def test_clips_go_into_the_page_until_it_is_full_and_are_linked_after(tmp_path):
    folder = write_set(tmp_path / "set #1", num_clips=6)
    names = [f"{i:03d}.wav" for i in range(6)]
    page = tmp_path / "pages" / "report.html"
    inside = play(folder, names, page)
    for name, address in zip(names, inside, strict=True):
        audio, rate = decode(address)
        original, _ = soundfile.read(folder / name)
        assert rate == 16000
        assert abs(len(audio) - len(original)) <= 1
        assert np.corrcoef(audio[: len(original)], original[: len(audio)])[0, 1] > 0.9
    assert inside == play(folder, names, page)  # the same bytes every time
    room = sum(map(len, inside)) // 2
    some = play(folder, names, page, max_bytes=room)
    kept = [one for one in some if one.startswith("data:")]
    assert 1 <= len(kept) < 6
    assert sum(map(len, kept)) <= room
    linked = [one for one in some if not one.startswith("data:")]
    assert all(one.startswith("../set%20%231/") for one in linked)
    short = play(folder, names, page, max_seconds=0.1)
    assert all(len(decode(one)[0]) == 1600 for one in short)


def test_members_of_a_tar_cannot_be_linked(tmp_path):
    folder = write_set(tmp_path / "set", num_clips=6)
    with tarfile.open(folder / "audio.tar", "w") as tar:
        for file in sorted(folder.glob("*.wav")):
            tar.add(file, file.name)
            file.unlink()
    names = [f"{i:03d}.wav" for i in range(6)]
    assert all(one.startswith("data:") for one in play(folder, names, tmp_path / "r.html"))
    assert play(folder, names, tmp_path / "r.html", max_bytes=0) == [""] * 6


def test_another_or_a_missing_set_is_not_played(tmp_path, caplog):
    folder = write_set(tmp_path / "set", num_clips=6)
    assert play(folder, ["other.wav"], tmp_path / "r.html") == [""]
    assert "holds other clips than were clustered" in caplog.text
    assert play(tmp_path / "none", ["000.wav"], tmp_path / "r.html") == [""]
    (folder / "000.wav").write_bytes(b"")
    assert play(folder, ["000.wav"], tmp_path / "r.html") == [""]


def test_an_unknown_codec_is_refused():
    with pytest.raises(ValueError, match="flac or opus, got 'mp3'"):
        encode_sound(np.zeros(10, np.float32), sample_rate=16000, codec="mp3")
