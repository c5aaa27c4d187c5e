"""Decoding of sound files: libsndfile, and torchcodec (FFmpeg) for m4a, WebM and videos.

Measured with libsndfile 1.2.2: an mp3 without a header reads short, since its length is guessed
from the first frame, so an mp3 is decoded to its last frame and counted; cut WAV, AIFF and Ogg
files decode to what is there (`streams`), a cut FLAC raises.
"""

import contextlib
import functools
import importlib
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import soundfile

from ssmast.audio.source import (
    AudioError,
    SlicedFile,
    Source,
    Stream,
    first_bytes,
    source_size,
    viewed,
)

_BLOCK_FRAMES = 1 << 16
LEAST_HZ = 100
"""A lower rate is a wrong one, such as one in kHz: a second would become minutes."""
UNKNOWN_LENGTH = 1 << 48
"""Frames that no file has: FLAC written to a pipe reports 2**63 - 1."""

_FOREIGN_MAGIC = (  # (offset, bytes, what it is)
    (4, b"ftyp", "MPEG-4 (m4a, mp4)"),
    (4, b"moov", "QuickTime"),
    (4, b"mdat", "QuickTime"),
    (4, b"wide", "QuickTime"),
    (8, b"AVI ", "AVI"),
    (0, b"\x0b\x77", "AC-3"),
    (0, b"\x1a\x45\xdf\xa3", "Matroska or WebM"),
    (0, b"\xff\xf1", "AAC"),
    (0, b"\xff\xf9", "AAC"),
    (0, b"\x30\x26\xb2\x75", "Windows Media (wma)"),
    (0, b"#!AMR", "AMR"),
    (0, b"MAC ", "Monkey's Audio (ape)"),
    (0, b"wvpk", "WavPack"),
)


class ForeignError(AudioError):
    """A sound file of a kind that libsndfile does not know, but FFmpeg does."""

    def __init__(self, message: str, what: str = "") -> None:
        super().__init__(message)
        self.what = what


CHANNELS = ("mean", "first", "loudest", "left", "right")
"""How one channel is made of several; a number from 0 on takes that one."""


def check_channel(channel: str | int) -> str:
    """The name of a channel, unless there is no such: a ValueError then."""
    if isinstance(channel, int) and not isinstance(channel, bool) and channel >= 0:
        return str(channel)
    is_number = isinstance(channel, str) and channel.isascii() and channel.isdigit()
    if channel not in CHANNELS and not is_number:
        known = ", ".join(CHANNELS)
        raise ValueError(f"channel must be {known}, or a number from 0 on, got {channel!r}")
    return str(channel)


class Mixer:
    """Makes one channel of several, block by block, and notices when that loses the sound.

    `loudest` says which of them is the loudest, and is asked where `channel` wants that.
    """

    def __init__(self, channels: int, channel: str, label: str, loudest: Callable[[], int]) -> None:
        self._channels, self._label = channels, label
        self._pick: int | None = None
        self._mean = self._all = 0.0  # energy about the middle
        if channel.isdigit():
            self._pick = int(channel)
            if self._pick >= channels:
                raise AudioError(
                    f"{label} has no channel {channel}: it has {channels}, counted from 0"
                )
        elif channels > 1 and channel == "loudest":
            self._pick = loudest()
        elif channels == 1 or channel != "mean":
            self._pick = int(channel == "right" and channels > 1)

    def __call__(self, block: np.ndarray) -> np.ndarray:
        """Frames (n, channels) -> samples (n,)."""
        if self._pick is not None:
            return block[:, self._pick]
        columns = np.ascontiguousarray(block.T)  # 16 times faster than sums over pairs
        mixed = columns.sum(axis=0, dtype=np.float32)
        mixed /= np.float32(len(columns))
        self._mean += float(mixed.var()) * len(mixed)
        self._all += float(columns.var(axis=1).mean()) * len(mixed)
        return mixed

    @property
    def cancels(self) -> bool:
        """Whether the mean so far has under 1 % of the energy that unrelated channels leave."""
        return self._mean < 0.01 / self._channels * self._all

    def check(self) -> None:
        """Refuse a mean in which the channels cancel each other."""
        if self.cancels:
            lost = 10 * np.log10(max(self._mean / self._all, 1e-20))
            raise AudioError(
                f"{self._label} loses its sound in the mean of its {self._channels} channels, "
                f"which cancel each other ({lost:.0f} dB): give channel=left, right or loudest"
            )


class Decoder(soundfile.SoundFile):
    """A sound file that is read straight on.

    After every read of a seekable file, soundfile seeks to where it already stands. In Opus and mp3
    that disturbs the decoder (block by block, samples came out up to 0.87 off), and in a FLAC file
    of unknown length it fails.
    """

    source: Source
    label: str
    """What to call the source in an error."""
    divisor = 1.0
    """What samples are divided by so that full scale is 1."""
    mixer: Mixer
    """Makes one channel."""

    @property
    def can_seek(self) -> bool:
        """Whether `seek` may be used."""
        return super().seekable()

    @property
    def length_is_known(self) -> bool:
        """Whether `frames` can be believed: never that of an mp3."""
        return 0 < self.frames < UNKNOWN_LENGTH and not self.subtype.startswith("MPEG")

    def seekable(self) -> bool:
        """False, which is what keeps soundfile from seeking by itself."""
        return False


@contextmanager
def opened(source: Source, label: str, channel: str = "mean") -> Iterator[Decoder]:
    """An open decoder; every failure inside the block comes out as AudioError.

    Raises:
        AudioError: if it cannot be opened, or decoding fails.
    """
    if not isinstance(source, bytes):
        _check_path(source.path if isinstance(source, Stream) else source, label)
    try:
        with contextlib.ExitStack() as stack:
            target: Any
            if isinstance(source, bytes | Stream):
                target = SlicedFile(stack.enter_context(viewed(source)))
            else:  # encoded by hand: soundfile would refuse a name that is not valid UTF-8
                target = os.fsencode(source)
            file = stack.enter_context(Decoder(target))
            if file.samplerate < LEAST_HZ:
                raise AudioError(f"{label} says {file.samplerate} Hz, too low a rate for a sound")
            file.source, file.label = source, label
            file.divisor = _divisor(file)
            file.mixer = Mixer(file.channels, channel, label, lambda: _loudest(source, label))
            yield file
    except AudioError:
        raise
    except (soundfile.SoundFileError, OSError, TypeError, RuntimeError, ValueError) as error:
        try:
            head = first_bytes(source, 512)
        except OSError as problem:
            raise AudioError(f"{label} cannot be opened: {problem.strerror}") from problem
        what = _foreign_kind(source, head)
        if what:
            raise ForeignError(f"{label} is {what}, which soundfile cannot decode", what) from error
        raise AudioError(f"{label} {_why_unreadable(head, error)}") from error


def decode(file: Decoder, frames: int | None) -> np.ndarray:
    """Mono samples from where the file stands: `frames` of them, or all there are for None."""
    blocks = list(decoded_blocks(file, frames))
    return np.concatenate(blocks) if blocks else np.zeros(0, dtype=np.float32)


def decoded_blocks(file: Decoder, frames: int | None) -> Iterator[np.ndarray]:
    """As `decode`, block by block; what is missing shows at the end."""
    missing = UNKNOWN_LENGTH if frames is None else frames
    while missing > 0:
        block = file.read(min(missing, _BLOCK_FRAMES), dtype="float32", always_2d=True)
        if not len(block):
            break
        if file.divisor != 1.0:
            block /= np.float32(file.divisor)
        yield file.mixer(block)
        missing -= len(block)
    if frames is not None and missing > 0:
        raise AudioError(
            f"{file.label} is truncated: its header promises {file.frames} frames, and decoding "
            f"ended {missing} frames short of what was asked"
        )


def _loudest(source: Source, label: str) -> int:
    """The channel of a file whose samples vary most; the file is decoded for it, once."""
    if isinstance(source, bytes | Stream):
        return _measured_loudest(source, label)
    state = os.stat(source)
    return _remembered_loudest(os.fsdecode(source), label, state.st_size, state.st_mtime_ns)


def _measured_loudest(source: Source, label: str, *state: int) -> int:
    with opened(source, label) as file:  # another decoder: not all formats seek exactly
        energy = np.zeros(file.channels)
        while len(block := file.read(_BLOCK_FRAMES, dtype="float32", always_2d=True)):
            energy += block.var(axis=0, dtype=np.float64) * len(block)
    return int(np.nan_to_num(energy, nan=-1.0, posinf=-1.0).argmax())


# As long as the file does not change: clips may share one.
_remembered_loudest = functools.lru_cache(maxsize=4096)(_measured_loudest)


def mix(frames: np.ndarray, label: str, channel: str = "mean") -> np.ndarray:
    """Float32 frames (n, channels) -> one channel (n,)."""
    mixer = Mixer(
        frames.shape[1], channel, label, lambda: int(np.nan_to_num(frames.var(axis=0)).argmax())
    )
    mixed = mixer(frames)
    mixer.check()
    return mixed


def scaled(samples: np.ndarray, label: str = "the waveform") -> np.ndarray:
    """Samples of any number type as float32 whose full scale is 1; floats that are so stay.

    Neither the type nor the largest value tells the scale: 16-bit samples come as int32, int64, and
    as floats that were never divided. Of 16 bits are whole numbers that all fit into 16 bits; those
    that need 17 to 24 may be of 24 bits, or quiet ones of 32.

    Raises:
        AudioError: if they are no floats or signed integers, or of no certain scale.
    """
    kind, size = samples.dtype.kind, samples.dtype.itemsize
    if kind not in "if" or (kind == "i" and size == 1):
        raise AudioError(
            f"{label} must hold floats or signed integers of 16 bits or more, got {samples.dtype}"
        )
    if kind == "i":
        peak = max(int(samples.max()), -int(samples.min()))
        usual = -float(np.iinfo(samples.dtype).min)
        divisor = usual if size == 2 else _divisor_of_whole(peak, usual, label)
        floats = samples.astype(np.float32)
    else:
        with np.errstate(over="ignore"):  # what float32 cannot hold is infinite, and refused
            floats = samples.astype(np.float32, copy=False)
        peak = max(float(floats.max()), -float(floats.min()))
        divisor = 1.0
        if _SURELY_WHOLE <= peak < np.inf and _is_whole(floats):
            divisor = _divisor_of_whole(peak, 1.0, label)
    if divisor == 1.0:
        return floats
    floats = floats.copy() if floats is samples else floats
    floats /= np.float32(divisor)  # in place: an hour is 230 MB
    return floats


_SURELY_WHOLE = 2.0  # a square wave of floats is whole as well, between -1 and 1


def _divisor_of_whole(peak: float, usual: float, label: str) -> float:
    """Full scale of whole numbers up to `peak`; `usual` for those beyond 32 bits."""
    if peak <= 1 << 15:
        return float(1 << 15)
    if peak <= 1 << 23:
        raise AudioError(
            f"{label} holds whole numbers up to {peak:.0f}, which may be samples of 24 bits, or "
            "quiet ones of 32: divide them by their full scale (8388608 or 2147483648)"
        )
    return float(1 << 31) if peak <= 1 << 31 else usual


def _is_whole(samples: np.ndarray) -> bool:
    """Whether there is no fraction in samples of any shape; as a rule the first ones say no."""
    flat = samples.reshape(-1)
    parts = [
        flat[:1024],
        *(flat[i : i + _BLOCK_FRAMES] for i in range(0, len(flat), _BLOCK_FRAMES)),
    ]
    return all(np.array_equal(np.rint(part), part) for part in parts)


def _divisor(file: Decoder) -> float:
    """Full scale of a file whose subtype does not tell it; leaves the decoder at its start."""
    if file.subtype not in ("FLOAT", "DOUBLE", "PCM_32"):
        return 1.0
    is_float, size, peak = file.subtype != "PCM_32", 1024, 0.0
    try:
        while len(block := file.read(size, dtype="float32", always_2d=True)):
            peak = max(peak, float(block.max()), -float(block.min()))
            # As a rule the first samples say it; NaN is not whole.
            if not _is_whole(block) if is_float else peak > _FITS_16_OF_32:
                return 1.0
            size = _BLOCK_FRAMES
    finally:
        file.seek(0)
    if not is_float and peak:
        raise AudioError(
            f"{file.label} says 32 bits, and no sample needs more than 16: 16-bit samples that "
            "were not scaled, or next to silence; multiply them by 65536, or write them as 16 bits"
        )
    return _divisor_of_whole(peak, 1.0, file.label) if peak >= _SURELY_WHOLE else 1.0


_FITS_16_OF_32 = 2.0**-16


def _check_path(path: str | os.PathLike[str], label: str) -> None:
    """Refuse what is no regular file: a named pipe would block the decoder for ever."""
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise AudioError(f"{label} cannot be opened: {reason}") from error
    if stat.S_ISDIR(mode):
        raise AudioError(f"{label} is a folder, not a sound file")
    if not stat.S_ISREG(mode):
        raise AudioError(f"{label} is a pipe or device, not a sound file")


def _foreign_kind(source: Source, head: bytes) -> str:
    """The format of a source that FFmpeg may decode, by its first bytes; else empty.

    Never by its name alone: FFmpeg reads text such as playlists too, and what they point at.
    """
    for offset, magic, what in _FOREIGN_MAGIC:
        if head[offset : offset + len(magic)] == magic:
            return what
    if not head.startswith(b"ID3") or isinstance(source, bytes | Stream):
        return ""
    return "AAC" if os.fsdecode(source).lower().endswith(".aac") else ""


def _why_unreadable(head: bytes, error: Exception) -> str:
    """Why the decoder refused a source, from its first bytes."""
    if not head:
        return "is empty: it holds zero bytes"
    if head.startswith(b"version https://git-lfs"):
        return "is a Git LFS pointer, not audio; run `git lfs pull` where it was cloned"
    if all(byte in b"\t\n\r\f" or 32 <= byte < 127 for byte in head):
        return "is a text file, not audio"
    reason = str(getattr(error, "error_string", error)).strip().rstrip(".")
    if reason.startswith("File does not exist"):  # what libsndfile says of an mp3 without a frame
        reason = "no frame of it can be decoded"
    return f"is damaged, truncated or no audio that soundfile can decode ({reason})"


_INSTALL = "install torchcodec (pip install 'ssmast[codecs]') and FFmpeg, or convert it to FLAC"


def decode_foreign(
    source: Source, label: str, what: str, channel: str = "mean"
) -> tuple[np.ndarray, int]:
    """Decode a file of a format that libsndfile does not know.

    Whole, whatever range is wanted: ranges that torchcodec seeks in mp3, AAC and WebM came out up
    to 1105 samples off.

    Returns:
        Float32 samples (S,) and their rate in Hz.

    Raises:
        AudioError: if torchcodec is missing, or the file cannot be decoded or has no sound.
    """
    decoder_class = _decoder_class(label, what)
    try:
        # An absolute path, for FFmpeg takes "http:x.mp4" for an address.
        if isinstance(source, Stream):
            source = first_bytes(source, source_size(source))
        target = source if isinstance(source, bytes) else os.path.abspath(os.fsdecode(source))
        found = decoder_class(target).get_all_samples()
    except (RuntimeError, ValueError, OSError, IndexError) as error:
        raise AudioError(
            f"{label} is {what} that FFmpeg cannot decode: it is damaged or has no sound track"
        ) from error
    frames = found.data.numpy().T.astype(np.float32)
    if not len(frames):
        raise AudioError(f"{label} is {what} whose sound track holds no samples")
    audio = mix(scaled(frames, label), label, channel)
    return audio, int(found.sample_rate)


def decoder_version() -> str:
    """Name and version of the decoder, for the manifest."""
    from importlib.metadata import version

    return f"torchcodec {version('torchcodec')}"


def _decoder_class(label: str, what: str) -> Any:
    try:
        return importlib.import_module("torchcodec.decoders").AudioDecoder
    except ImportError as error:
        raise AudioError(f"{label} is {what}, which soundfile cannot decode; {_INSTALL}") from error
    except (RuntimeError, OSError) as error:  # torchcodec is there, FFmpeg's libraries are not
        raise AudioError(
            f"{label} is {what}, and torchcodec finds no FFmpeg 4 to 9; {_INSTALL}"
        ) from error
