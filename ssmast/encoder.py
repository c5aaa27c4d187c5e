"""Encoder: waveform -> embedding, from one folder that holds all it takes.

    config.json          front end, architecture, pooling; timm reads it as `local-dir:FOLDER`
    model.safetensors    weights
    checksums.json       SHA-256 of both, verified on load
    README.md            model card
"""

import contextlib
import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ssmast.audio import LogMel, read_audio
from ssmast.encoder_folder import model_card, read_folder, write_folder
from ssmast.model import MAST, create_model, pool_tokens, pooled_dim
from ssmast.model.pool import POOL_MODES

LAYERS = ("last", "stages", "blocks")

Clip = str | Path | np.ndarray[Any, np.dtype[Any]] | Tensor


class _Chunk(NamedTuple):
    """Frames [start, start + length) of the log-mel of one clip of a list."""

    clip: int
    start: int
    length: int


class Encoder(nn.Module):
    """Log-mel front end, backbone and pooling as one thing.

    Args:
        backbone: a model of the family, made by `ssmast.create_model`.
        log_mel: the front end, with the normalisation it was trained with.
        pooling: "mean", "mean+max" or "freq+max" (time mean of each frequency row, then the
            maximum over all tokens).
        layers: which tokens are pooled: "last", the ends of the "stages", or all "blocks"; their
            vectors are joined.
        chunk_seconds: longer clips are cut into equal pieces of at most about this length; of
            their vectors the means are averaged by length, of the maxima the largest is taken.
        info: facts for the model card, plain JSON values.

    Raises:
        ValueError: for an unknown pooling or layers, or a backbone of another family.
    """

    def __init__(
        self,
        backbone: nn.Module,
        log_mel: LogMel,
        *,
        pooling: str = "freq+max",
        layers: str = "last",
        chunk_seconds: float = 10.0,
        info: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if pooling not in POOL_MODES:
            raise ValueError(f"pooling must be one of {', '.join(POOL_MODES)}, got {pooling!r}")
        if layers not in LAYERS:
            raise ValueError(f"layers must be one of {', '.join(LAYERS)}, got {layers!r}")
        if not isinstance(backbone, MAST):
            raise ValueError(
                f"backbone must come from ssmast.create_model, got {type(backbone).__name__}"
            )
        if not chunk_seconds > 0:
            raise ValueError(f"chunk_seconds must be above 0, got {chunk_seconds}")
        self.backbone = backbone
        self.log_mel = log_mel
        self.pooling, self.layers, self.chunk_seconds = pooling, layers, float(chunk_seconds)
        self.info = dict(info or {})
        stem = backbone.patch_embed
        self._stride = stem.stride[1] * math.prod(time for _, time in backbone.stride_q)
        # Frames that a piece needs beyond its columns x stride, and at all.
        self._overhang = max(0, stem.kernel[1] - 2 * stem.padding[1] - stem.stride[1])
        self._fewest_frames = max(1, stem.kernel[1] - 2 * stem.padding[1])

    # -- what it is ------------------------------------------------------------------------------

    @property
    def sample_rate(self) -> int:
        """Hz at which the front end works."""
        return self.log_mel.sample_rate

    @property
    def dim(self) -> int:
        """Length of an embedding."""
        return sum(pooled_dim(self.pooling, rows, dim) for rows, dim in self._pooled_layers())

    @property
    def sha256(self) -> str:
        """Hash of the weights: that of model.safetensors."""
        return hashlib.sha256(self._weights()).hexdigest()

    def settings(self) -> dict[str, Any]:
        """What besides the weights decides an embedding, plain JSON values."""
        return {
            "front_end": self.log_mel.settings(),
            "pooling": self.pooling,
            "layers": self.layers,
            "chunk_seconds": self.chunk_seconds,
        }

    # -- embedding -------------------------------------------------------------------------------

    def embed(
        self,
        waveform: Clip | Sequence[Clip],
        sample_rate: int | None = None,
        *,
        batch_seconds: float = 60.0,
    ) -> Tensor:
        """One vector a clip, of sound of any rate and length.

        Args:
            waveform: a file, samples (S,) or (B, S), or a list of files and samples (S,) of any
                lengths. Integers are scaled by their type's range.
            sample_rate: Hz of the samples; files know their own.
            batch_seconds: audio that goes through the network at once; bounds the memory.

        Returns:
            Float32 (B, `dim`) on the CPU; (1, `dim`) for one clip. A clip in a list gets the
            vector that it gets alone.

        Raises:
            ValueError: if samples come without their rate, are empty, not finite, or not (S,) or
                (B, S). AudioError, a kind of it, if a file cannot be read.
        """
        return self.embed_clips(self._clips(waveform, sample_rate), batch_seconds=batch_seconds)

    @torch.no_grad()
    def embed_clips(self, waveforms: Sequence[Tensor], *, batch_seconds: float = 60.0) -> Tensor:
        """`embed` for float32 clips (S,) that are at `sample_rate` already."""
        is_max = self._is_max()
        means = torch.zeros(len(waveforms), self.dim)
        maxima = torch.full_like(means, -math.inf)
        totals = [self._num_frames(len(waveform)) for waveform in waveforms]
        chunks = [chunk for clip, total in enumerate(totals) for chunk in self._cut(clip, total)]
        budget = batch_seconds * self.sample_rate / self.log_mel.hop_length
        with self._evaluating():
            for batch in _batches(chunks, budget):
                vectors = self._pool(*self._log_mels(waveforms, batch)).float().cpu()
                for chunk, vector in zip(batch, vectors, strict=True):
                    means[chunk.clip] += vector * (chunk.length / totals[chunk.clip])
                    maxima[chunk.clip] = torch.maximum(maxima[chunk.clip], vector)
        return torch.where(is_max, maxima, means)

    @torch.no_grad()
    def embed_frames(
        self, waveform: Clip, sample_rate: int | None = None, *, batch_seconds: float = 60.0
    ) -> tuple[Tensor, Tensor]:
        """One vector a time column of tokens: the frequency rows of the last layer, joined.

        Args:
            waveform: a file, or samples (S,) or (B, S).
            sample_rate: Hz of the samples; files know their own.
            batch_seconds: audio that goes through the network at once.

        Returns:
            Float32 vectors (B, N, rows x channels), and the time of the centre of each in
            milliseconds (B, N), evenly spaced, none beyond the end of the clip; on the CPU.

        Raises:
            ValueError: as `embed`.
        """
        if isinstance(waveform, list | tuple):
            raise ValueError(
                "embed_frames takes one clip (S,) or clips of one length (B, S), got a "
                f"{type(waveform).__name__}; call it once a clip"
            )
        clips = self._clips(waveform, sample_rate)
        total = self._num_frames(len(clips[0]))
        chunks = [chunk for clip in range(len(clips)) for chunk in self._cut(clip, total)]
        pieces: dict[_Chunk, Tensor] = {}
        with self._evaluating():
            for batch in _batches(chunks, batch_seconds * self.sample_rate / self._hop):
                log_mel, lengths = self._log_mels(clips, batch)
                tokens, grid, _ = self.backbone.encode(log_mel, lengths=lengths)
                maps = tokens.unflatten(1, grid[:]).transpose(1, 2).flatten(2)  # (b, t, f * C)
                for chunk, columns in zip(batch, maps.float().cpu(), strict=True):
                    pieces[chunk] = columns[: self._num_columns(chunk.length)]
        rows = [
            torch.cat([pieces[chunk] for chunk in chunks if chunk.clip == clip])
            for clip in range(len(clips))
        ]
        embeddings = torch.stack(rows)  # (B, N, f * C)
        stem = self.backbone.patch_embed
        centres = torch.arange(embeddings.shape[1]) * self._stride
        centres = centres + (stem.kernel[1] - 1) / 2 - stem.padding[1]  # in frames
        milliseconds = centres.clamp(min=0) * (1000 * self._hop / self.sample_rate)
        return embeddings, milliseconds.float().expand(len(clips), -1).clone()

    # -- saving ----------------------------------------------------------------------------------

    def save(self, folder: str | Path) -> None:
        """Write the encoder folder, whole or not at all; an older encoder there is replaced.

        Raises:
            FileExistsError: if the folder holds anything but an encoder.
            ValueError: if the backbone was not made by `ssmast.create_model`.
        """
        config = self._config()
        parameters = sum(parameter.numel() for parameter in self.backbone.parameters())
        card = model_card(config, dim=self.dim, num_parameters=parameters)
        write_folder(folder, config=config, weights=self._weights(), card=card)

    def _config(self) -> dict[str, Any]:
        backbone = self.backbone
        pretrained_cfg = dict(getattr(backbone, "pretrained_cfg", None) or {})
        architecture = pretrained_cfg.pop("architecture", None)
        if architecture is None:
            raise ValueError("only a backbone made by ssmast.create_model can be saved")
        # Regularisation of the training run does not belong to the weights.
        args = dict(getattr(backbone, "_model_args", {}))
        args.pop("drop_path_rate", None)
        args.update(input_size=backbone.input_size, in_chans=backbone.in_chans)
        args["global_pool"] = backbone.global_pool
        front = self.log_mel.settings()
        kept = ("first_conv", "classifier", "license", "fixed_input_size")
        return {
            "architecture": architecture,
            "num_classes": backbone.num_classes,
            "num_features": backbone.num_features,
            "model_args": {**args, "num_classes": backbone.num_classes},
            "pretrained_cfg": {
                **{key: pretrained_cfg[key] for key in kept if key in pretrained_cfg},
                "input_size": [backbone.in_chans, *backbone.input_size],
                "num_classes": backbone.num_classes,
                "mean": [front["mean"]],
                "std": [front["std"]],
            },
            "ssmast": {"format": 1, **self.settings(), "info": self.info},
        }

    def _weights(self) -> bytes:
        from safetensors.torch import save

        state = {name: value.contiguous() for name, value in self.backbone.state_dict().items()}
        return save(state, metadata={"format": "pt"})

    # -- parts -----------------------------------------------------------------------------------

    @property
    def _hop(self) -> int:
        return self.log_mel.hop_length

    @contextlib.contextmanager
    def _evaluating(self) -> Iterator[None]:
        """Every module in eval mode, and afterwards in its own again."""
        modes = [(module, module.training) for module in self.modules()]
        self.eval()
        try:
            yield
        finally:
            for module, mode in modes:
                module.training = mode

    def _clips(self, waveform: Clip | Sequence[Clip], sample_rate: int | None) -> list[Tensor]:
        """What a caller may give -> float32 clips (S,) at `self.sample_rate`."""
        if isinstance(waveform, list | tuple):
            if not waveform:
                raise ValueError("embed wants at least one clip, got an empty list")
            clips = [self._clips(item, sample_rate) for item in waveform]
            several = next((len(clip) for clip in clips if len(clip) > 1), None)
            if several is not None:
                raise ValueError(
                    f"a clip in a list must be a file or samples (S,), got {several} rows; "
                    "give (B, S) alone"
                )
            return [clip for (clip,) in clips]
        if isinstance(waveform, str | Path):
            return [torch.from_numpy(read_audio(waveform, sample_rate=self.sample_rate))]
        if isinstance(waveform, Tensor):
            waveform = waveform.detach().float().cpu().numpy() if waveform.is_floating_point() else (
                waveform.cpu().numpy()
            )
        if not isinstance(waveform, np.ndarray):
            raise ValueError(
                "a clip must be a file, a numpy array or a torch tensor, got "
                f"{type(waveform).__name__}"
            )
        if sample_rate is None or sample_rate <= 0:
            raise ValueError(f"samples need their sample_rate in Hz, got {sample_rate}")
        return [
            torch.from_numpy(_resample(row, int(sample_rate), self.sample_rate))
            for row in _checked_rows(waveform)
        ]

    def _num_frames(self, samples: int) -> int:
        return max(self.log_mel.frames(samples), self._fewest_frames)

    def _num_columns(self, frames: int) -> int:
        return self.backbone.grid_of(self.log_mel.num_mels, frames)[-1].time

    def _cut(self, clip: int, frames: int) -> list[_Chunk]:
        """Pieces of equal length, in whole columns, so that no short tail is left over."""
        columns = self._num_columns(frames)
        longest = self.chunk_seconds * self.sample_rate / self._hop / self._stride
        count = math.ceil(columns / math.ceil(longest))
        edges = [columns * part // count for part in range(count + 1)]
        chunks = []
        for start, stop in pairwise(edges):
            end = stop * self._stride + self._overhang if stop < columns else frames
            chunks.append(_Chunk(clip, start * self._stride, end - start * self._stride))
        return chunks

    def _log_mels(
        self, waveforms: Sequence[Tensor], chunks: Sequence[_Chunk]
    ) -> tuple[Tensor, Tensor | None]:
        """Normalised log-mels (B, 1, F, T) of the chunks, cut from those of the whole clips.

        Each chunk's samples come with the half window on both sides, so cutting changes no frame.
        The second value holds the frames of each, or None where all have T.
        """
        context = math.ceil(self.log_mel.n_fft // 2 / self._hop)  # frames
        longest = max(chunk.length for chunk in chunks)
        size = (longest + 2 * context) * self._hop
        batch = torch.zeros(len(chunks), size)
        for row, chunk in zip(batch, chunks, strict=True):
            first = (chunk.start - context) * self._hop
            last = (chunk.start + chunk.length + context) * self._hop
            part = waveforms[chunk.clip][max(first, 0) : max(last, 0)]
            row[max(-first, 0) :][: len(part)] = part
        device = self.backbone.patch_embed.proj.weight.device
        log_mel = self.log_mel(batch.to(device))[..., context : context + longest]
        lengths = torch.tensor([chunk.length for chunk in chunks])
        return log_mel, None if int(lengths.min()) == longest else lengths

    def _pool(self, log_mel: Tensor, lengths: Tensor | None) -> Tensor:
        """Pooled vectors (B, `dim`)."""
        if self.layers == "last":
            outcomes = [self.backbone.encode(log_mel, lengths=lengths)]
        else:
            outcomes = self.backbone.encode_blocks(log_mel, lengths=lengths)
            if self.layers == "stages":
                outcomes = [outcomes[index] for index in self.backbone.stage_ends]
        return torch.cat(
            [pool_tokens(x, grid, mode=self.pooling, mask=mask) for x, grid, mask in outcomes],
            dim=1,
        )

    def _pooled_layers(self) -> list[tuple[int, int]]:
        """(frequency rows, channels) of every layer that is pooled."""
        backbone = self.backbone
        grids = backbone.grid_of(self.log_mel.num_mels, max(backbone.input_size[1], 1))
        if self.layers == "last":
            return [(grids[-1].freq, backbone.num_features)]
        layers = []
        for stage, grid in zip(backbone.stages, grids[1:], strict=True):
            blocks = [(grid.freq, block.mlp.fc2.out_features) for block in stage.blocks]
            layers += blocks if self.layers == "blocks" else blocks[-1:]
        return layers

    def _is_max(self) -> Tensor:
        """Which numbers of an embedding are maxima over tokens, bool (`dim`,)."""
        parts = []
        for rows, dim in self._pooled_layers():
            part = torch.zeros(pooled_dim(self.pooling, rows, dim), dtype=torch.bool)
            if self.pooling != "mean":
                part[-dim:] = True
            parts.append(part)
        return torch.cat(parts)


def load_encoder(path: str | Path) -> Encoder:
    """The encoder in a folder, or on the Hugging Face Hub (`org/name`); on the CPU, in eval mode.

    Raises:
        FileNotFoundError: if there is none, or one of its files is missing.
        ValueError: if a file is damaged.
    """
    from safetensors.torch import load_file

    config, weights = read_folder(path)
    ours = config["ssmast"]
    try:
        log_mel = LogMel(**ours["front_end"])
        backbone = create_model(config["architecture"], **config["model_args"])
        encoder = Encoder(
            backbone,
            log_mel,
            pooling=ours["pooling"],
            layers=ours["layers"],
            chunk_seconds=ours["chunk_seconds"],
            info=ours.get("info", {}),
        )
        backbone.load_state_dict(load_file(weights))
    except (KeyError, TypeError, RuntimeError) as error:
        reason = str(error).split("\n")[0]
        raise ValueError(
            f"{weights.parent} cannot be loaded: its config.json and weights do not make an "
            f"encoder of this version ({reason})"
        ) from error
    return encoder.eval()


def random_twin(encoder: Encoder, *, seed: int) -> Encoder:
    """The same architecture, front end and pooling with fresh weights: what training must beat.

    Args:
        encoder: to copy all but the weights of; made or loaded, on any device.
        seed: of the fresh weights; the global generator is left as it was.
    """
    config = encoder._config()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        backbone = create_model(config["architecture"], **json.loads(json.dumps(config["model_args"])))
    twin = Encoder(
        backbone,
        LogMel(**encoder.log_mel.settings()),
        pooling=encoder.pooling,
        layers=encoder.layers,
        chunk_seconds=encoder.chunk_seconds,
        info={"network": "untrained", "seed": seed},
    )
    return twin.to(encoder.backbone.patch_embed.proj.weight.device).eval()


def _batches(chunks: Sequence[_Chunk], budget: float) -> Iterator[list[_Chunk]]:
    """Chunks of similar length together, each batch at most `budget` padded frames."""
    batch: list[_Chunk] = []
    for chunk in sorted(chunks, key=lambda chunk: -chunk.length):
        # The first one is the longest: all are padded to it, and none to over twice its length.
        if batch and (
            (len(batch) + 1) * batch[0].length > budget or 2 * chunk.length < batch[0].length
        ):
            yield batch
            batch = []
        batch.append(chunk)
    if batch:
        yield batch


def _checked_rows(samples: np.ndarray[Any, np.dtype[Any]]) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Samples (S,) or (B, S) of any number type -> finite float32 (B, S)."""
    if samples.ndim not in (1, 2):
        raise ValueError(f"waveform must be (S,) or (B, S), got shape {samples.shape}")
    rows = np.atleast_2d(samples)
    if rows.size == 0:
        raise ValueError(f"waveform must hold at least one sample, got shape {samples.shape}")
    if rows.shape[1] <= 8 and rows.shape[0] >= 1000:
        raise ValueError(
            f"waveform must be (batch, samples), got shape {samples.shape}, which looks like "
            "(samples, channels); average the channels, or transpose it"
        )
    if rows.dtype.kind in "iu":
        if rows.dtype.kind == "u" or rows.dtype.itemsize == 1:
            raise ValueError(f"waveform must hold floats or signed integers, got {rows.dtype}")
        return rows.astype(np.float32) / -float(np.iinfo(rows.dtype).min)
    if rows.dtype.kind != "f":
        raise ValueError(f"waveform must hold floats or signed integers, got {rows.dtype}")
    rows = rows.astype(np.float32, copy=False)
    if not np.isfinite(rows).all():
        raise ValueError("waveform must be finite, got NaN or infinity")
    return rows


def _resample(
    samples: np.ndarray[Any, np.dtype[np.float32]], rate: int, wanted: int
) -> np.ndarray[Any, np.dtype[np.float32]]:
    """As `read_audio` resamples, so that a file and its samples give one embedding."""
    import soxr

    if rate != wanted:
        resampled = soxr.resample(samples, rate, wanted, quality="HQ")
        if not len(resampled):
            raise ValueError(
                f"waveform is too short: {len(samples)} samples at {rate} Hz make none at "
                f"{wanted} Hz"
            )
        samples = resampled
    return np.ascontiguousarray(samples, dtype=np.float32)
