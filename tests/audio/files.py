"""Clips and tars for the tests of corpora."""

import io
import tarfile

import numpy as np
import soundfile

from ssmast.audio.read import read_audio


def wav_bytes(value, num_samples=50):
    """A clip that can be told from the others by its value."""
    buffer = io.BytesIO()
    soundfile.write(buffer, np.full(num_samples, value / 100), 16000, format="WAV")
    return buffer.getvalue()


def value_of(corpus, i):
    return round(100 * float(read_audio(corpus.source(i))[0]))


def names_of(corpus):
    return [corpus.name(i) for i in range(len(corpus))]


def write_tar(path, members, mode="w"):
    """Members: (name, bytes) or a TarInfo of another kind."""
    with tarfile.open(path, mode) as tar:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                tar.addfile(member)
            else:
                info = tarfile.TarInfo(member[0])
                info.size = len(member[1])
                tar.addfile(info, io.BytesIO(member[1]))
    return path


def special(name, kind, target=""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info
