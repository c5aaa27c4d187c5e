"""Sound file -> waveform -> log-mel -> view. The only station that opens sound files."""

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
from ssmast.audio.read import AudioError, read_audio, read_segments, resample
from ssmast.audio.remote import RemoteError
from ssmast.audio.segments import SegmentDataset, collate_segments
from ssmast.audio.stats import measure_mean_std
from ssmast.audio.stream import open_audio
from ssmast.audio.synthetic import write_synthetic_corpus
from ssmast.audio.table import read_table
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
    "measure_mean_std",
    "open_audio",
    "open_corpus",
    "read_audio",
    "read_segments",
    "read_table",
    "read_task_file",
    "resample",
    "sample_at",
    "try_formats",
    "write_synthetic_corpus",
]
