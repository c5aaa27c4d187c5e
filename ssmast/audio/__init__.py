"""Sound file -> waveform -> log-mel -> view. The only station that opens sound files.

The names below load on first use: an encoder needs no tables, whose library is 45 MB.
"""

import importlib
from typing import TYPE_CHECKING, Any

# Not on first use: the module `resample` would stand for its function.
from ssmast.audio.read import AudioError, read_audio, read_segments, resample

if TYPE_CHECKING:
    from ssmast.audio.augment import ClipAugment, MixupMemory, ViewAugment
    from ssmast.audio.corpus.cache import cache_decoded
    from ssmast.audio.corpus.corpus import Corpus, Mixture
    from ssmast.audio.corpus.open import open_corpus
    from ssmast.audio.corpus.quarantine import Quarantine
    from ssmast.audio.corpus.remote import RemoteError
    from ssmast.audio.corpus.table import read_header, read_table, read_task_file
    from ssmast.audio.encode import encode_sound
    from ssmast.audio.long import LongSound
    from ssmast.audio.mel import LogMel
    from ssmast.audio.order import BalancedOrder, StepSampler, keyed_uniform, sample_at
    from ssmast.audio.read import open_audio, try_formats
    from ssmast.audio.segments import MixedSegments, SegmentDataset, collate_mixed, collate_segments
    from ssmast.audio.stats import known_mean_std, measure_mean_std
    from ssmast.audio.synthetic import write_synthetic_corpus

__all__ = [
    "AudioError",
    "BalancedOrder",
    "ClipAugment",
    "Corpus",
    "LogMel",
    "LongSound",
    "MixedSegments",
    "Mixture",
    "MixupMemory",
    "Quarantine",
    "RemoteError",
    "SegmentDataset",
    "StepSampler",
    "ViewAugment",
    "cache_decoded",
    "collate_mixed",
    "collate_segments",
    "encode_sound",
    "keyed_uniform",
    "known_mean_std",
    "measure_mean_std",
    "open_audio",
    "open_corpus",
    "read_audio",
    "read_header",
    "read_segments",
    "read_table",
    "read_task_file",
    "resample",
    "sample_at",
    "try_formats",
    "write_synthetic_corpus",
]

_HOMES = {
    name: home
    for home, names in {
        "ssmast.audio.augment": (
            "ClipAugment",
            "MixupMemory",
            "ViewAugment",
        ),
        "ssmast.audio.corpus.cache": ("cache_decoded",),
        "ssmast.audio.corpus.corpus": (
            "Corpus",
            "Mixture",
        ),
        "ssmast.audio.corpus.open": ("open_corpus",),
        "ssmast.audio.corpus.quarantine": ("Quarantine",),
        "ssmast.audio.corpus.remote": ("RemoteError",),
        "ssmast.audio.corpus.table": (
            "read_header",
            "read_table",
            "read_task_file",
        ),
        "ssmast.audio.encode": ("encode_sound",),
        "ssmast.audio.long": ("LongSound",),
        "ssmast.audio.mel": ("LogMel",),
        "ssmast.audio.order": (
            "BalancedOrder",
            "StepSampler",
            "keyed_uniform",
            "sample_at",
        ),
        "ssmast.audio.read": (
            "open_audio",
            "try_formats",
        ),
        "ssmast.audio.segments": (
            "MixedSegments",
            "SegmentDataset",
            "collate_mixed",
            "collate_segments",
        ),
        "ssmast.audio.stats": (
            "known_mean_std",
            "measure_mean_std",
        ),
        "ssmast.audio.synthetic": ("write_synthetic_corpus",),
    }.items()
    for name in names
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'ssmast.audio' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value
