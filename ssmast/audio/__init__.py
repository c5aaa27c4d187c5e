"""Sound file -> waveform -> log-mel -> view. The only package that opens sound files.

The names below load on first use: an encoder needs no tables, whose library is 45 MB.
"""

# ruff: noqa: F401

import importlib
from typing import TYPE_CHECKING, Any

# Not on first use: the module `resample` would stand for its function.
from ssmast.audio.read import AudioError, read_audio, read_segments, resample, scaled

if TYPE_CHECKING:
    from ssmast.audio.augment import MixupMemory, ViewAugment
    from ssmast.audio.corpus.corpus import Corpus
    from ssmast.audio.corpus.open import open_corpus, open_words
    from ssmast.audio.corpus.quarantine import Quarantine
    from ssmast.audio.corpus.remote import RemoteError
    from ssmast.audio.mel import LogMel
    from ssmast.audio.order import BalancedOrder, StepSampler, keyed_uniform, sample_at
    from ssmast.audio.read import LongSound, open_audio
    from ssmast.audio.segments import MixedSegments, SegmentDataset, collate_mixed, collate_segments
    from ssmast.audio.synthetic import write_synthetic_corpus

_NAMES = {
    "augment": "MixupMemory ViewAugment",
    "corpus.corpus": "Corpus",
    "corpus.open": "open_corpus open_words",
    "corpus.quarantine": "Quarantine",
    "corpus.remote": "RemoteError",
    "long": "LongSound",
    "mel": "LogMel",
    "order": "BalancedOrder StepSampler keyed_uniform sample_at",
    "read": "open_audio",
    "segments": "MixedSegments SegmentDataset collate_mixed collate_segments",
    "synthetic": "write_synthetic_corpus",
}
_HOMES = {name: home for home, names in _NAMES.items() for name in names.split()}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'ssmast.audio' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"ssmast.audio.{_HOMES[name]}"), name)
    globals()[name] = value
    return value
