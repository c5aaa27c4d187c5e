"""Sound file -> waveform -> log-mel -> view. The only station that opens sound files.

The names below load on first use: an encoder needs no tables, whose library is 45 MB.
"""

import importlib
from typing import TYPE_CHECKING, Any

# Not on first use: the module `resample` would stand for its function.
from ssmast.audio.read import AudioError, read_audio, read_segments, resample

if TYPE_CHECKING:
    from ssmast.audio.augment import ViewAugment
    from ssmast.audio.cache import cache_decoded
    from ssmast.audio.clip_augment import ClipAugment
    from ssmast.audio.corpus import Corpus, open_corpus
    from ssmast.audio.encode import encode_sound
    from ssmast.audio.formats import try_formats
    from ssmast.audio.long import LongSound
    from ssmast.audio.mel import LogMel
    from ssmast.audio.memory import MixupMemory
    from ssmast.audio.mixed import MixedSegments, collate_mixed
    from ssmast.audio.mixture import Mixture
    from ssmast.audio.order import BalancedOrder, StepSampler, keyed_uniform, sample_at
    from ssmast.audio.quarantine import Quarantine
    from ssmast.audio.remote import RemoteError
    from ssmast.audio.segments import SegmentDataset, collate_segments
    from ssmast.audio.stats import known_mean_std, measure_mean_std
    from ssmast.audio.stream import open_audio
    from ssmast.audio.synthetic import write_synthetic_corpus
    from ssmast.audio.table import read_header, read_table
    from ssmast.audio.task_file import read_task_file

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
        "ssmast.audio.augment": ("ViewAugment",),
        "ssmast.audio.cache": ("cache_decoded",),
        "ssmast.audio.clip_augment": ("ClipAugment",),
        "ssmast.audio.corpus": ("Corpus", "open_corpus"),
        "ssmast.audio.encode": ("encode_sound",),
        "ssmast.audio.formats": ("try_formats",),
        "ssmast.audio.long": ("LongSound",),
        "ssmast.audio.mel": ("LogMel",),
        "ssmast.audio.memory": ("MixupMemory",),
        "ssmast.audio.mixed": ("MixedSegments", "collate_mixed"),
        "ssmast.audio.mixture": ("Mixture",),
        "ssmast.audio.order": ("BalancedOrder", "StepSampler", "keyed_uniform", "sample_at"),
        "ssmast.audio.quarantine": ("Quarantine",),
        "ssmast.audio.remote": ("RemoteError",),
        "ssmast.audio.segments": ("SegmentDataset", "collate_segments"),
        "ssmast.audio.stats": ("known_mean_std", "measure_mean_std"),
        "ssmast.audio.stream": ("open_audio",),
        "ssmast.audio.synthetic": ("write_synthetic_corpus",),
        "ssmast.audio.table": ("read_header", "read_table"),
        "ssmast.audio.task_file": ("read_task_file",),
    }.items()
    for name in names
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'ssmast.audio' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value
