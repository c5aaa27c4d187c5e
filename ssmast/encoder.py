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
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from timm.models import is_model
from torch import Tensor, nn

from ssmast.audio import LogMel, LongSound
from ssmast.encoder_card import model_card
from ssmast.encoder_chunks import Chunks, batches
from ssmast.encoder_folder import read_folder, write_folder
from ssmast.encoder_input import Clip, read_clips
from ssmast.model import Backbone, create_model, pool_tokens, pooled_dim
from ssmast.model.pool import MAX_MODES

LAYERS = ("last", "stages", "blocks")
FORMAT = 1
_LOADING_ARGS = {
    "pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir",
}  # fmt: skip


class Encoder(nn.Module):
    """Log-mel front end, backbone and pooling as one thing.

    Args:
        backbone: a model of the family, made by `ssmast.create_model`.
        log_mel: the front end, with the normalisation it was trained with.
        pooling: "mean", "mean+max", "freq" (time mean of each frequency row), "freq+max" (then
            the maximum over all tokens), or for AST "cls", the mean of class and distillation
            token.
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
        if layers not in LAYERS:
            raise ValueError(f"layers must be one of {', '.join(LAYERS)}, got {layers!r}")
        if not isinstance(backbone, Backbone):
            raise ValueError(
                f"backbone must come from ssmast.create_model, got {type(backbone).__name__}"
            )
        backbone.check_pooling(pooling)
        if not chunk_seconds > 0:
            raise ValueError(f"chunk_seconds must be above 0, got {chunk_seconds}")
        self.backbone = backbone
        self.log_mel = log_mel
        self.pooling, self.layers, self.chunk_seconds = pooling, layers, float(chunk_seconds)
        self.info = dict(info or {})

    # -- what it is ------------------------------------------------------------------------------

    @property
    def sample_rate(self) -> int:
        """Hz at which the front end works."""
        return self.log_mel.sample_rate

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.backbone.patch_embed.proj.weight.device

    @property
    def dim(self) -> int:
        """Length of an embedding."""
        return sum(self.layer_dims)

    @property
    def layer_dims(self) -> list[int]:
        """Length of each layer's part of an embedding, in their order."""
        return [pooled_dim(self.pooling, rows, dim) for rows, dim in self._pooled_layers()]

    @property
    def frame_dim(self) -> int:
        """Length of a vector of `embed_frames`."""
        frames = max(self.backbone.input_size[1], 1)
        rows = self.backbone.grid_of(self.log_mel.num_mels, frames)[-1].freq
        return rows * self.backbone.num_features

    def frame_hop_ms(self, hop_ms: float | None = None) -> float:
        """Milliseconds between vectors of `embed_frames`, where at most `hop_ms` are asked for."""
        cutter = self._chunks()
        frames = cutter.stride // len(cutter.shifts(hop_ms))
        return frames * 1000 * self.log_mel.hop_length / self.sample_rate

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
        batch_seconds: float = 20.0,
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
        return self.embed_clips(
            read_clips(waveform, sample_rate, wanted=self.sample_rate), batch_seconds=batch_seconds
        )

    @torch.no_grad()
    def embed_clips(
        self, waveforms: Sequence[Tensor | LongSound], *, batch_seconds: float = 20.0
    ) -> Tensor:
        """`embed` for float32 clips (S,) that are at `sample_rate` already."""
        is_max, cutter = self._is_max(), self._chunks()
        means = torch.zeros(len(waveforms), self.dim)
        maxima = torch.full_like(means, -math.inf)
        totals = [cutter.frames(len(waveform)) for waveform in waveforms]
        chunks = [chunk for clip, total in enumerate(totals) for chunk in cutter.cut(clip, total)]
        with self._evaluating():
            for batch in batches(chunks, most_frames=self._frames_of(batch_seconds)):
                log_mel, lengths = cutter.log_mels(waveforms, batch, device=self.device)
                vectors = self.pool(log_mel, lengths).float().cpu()
                for chunk, vector in zip(batch, vectors, strict=True):
                    means[chunk.clip] += vector * (chunk.length / totals[chunk.clip])
                    maxima[chunk.clip] = torch.maximum(maxima[chunk.clip], vector)
        return torch.where(is_max, maxima, means)

    @torch.no_grad()
    def embed_frames(
        self,
        waveform: Clip,
        sample_rate: int | None = None,
        *,
        hop_ms: float | None = None,
        batch_seconds: float = 20.0,
    ) -> tuple[Tensor, Tensor]:
        """One vector a time column of tokens: the frequency rows of the last layer, joined.

        Args:
            waveform: a file, or samples (S,) or (B, S).
            sample_rate: Hz of the samples; files know their own.
            hop_ms: longest time between vectors, such as 50; None for the network's own (a column
                of tokens). The network then goes over the clip several times, each time a little
                later: that costs as many times the time, and gives new vectors, not interpolated
                ones.
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
        clips = read_clips(waveform, sample_rate, wanted=self.sample_rate)
        cutter = self._chunks()
        total, shifts = cutter.frames(len(clips[0])), cutter.shifts(hop_ms)
        chunks = [
            chunk
            for clip in range(len(clips))
            for shift in shifts
            for chunk in cutter.cut(clip, total, first=shift)
        ]
        hop = cutter.stride // len(shifts)
        # Pass k gives the columns k, k + n, k + 2 n, ... ; a clip may be too short for the last.
        passes = [shift for shift in shifts if cutter.cut(0, total, first=shift)]
        count = sum(cutter.columns(total - shift) for shift in passes)
        embeddings = torch.zeros(len(clips), count, self.frame_dim)
        with self._evaluating():
            for batch in batches(chunks, most_frames=self._frames_of(batch_seconds)):
                log_mel, lengths = cutter.log_mels(clips, batch, device=self.device)
                tokens, grid, _ = self.backbone.encode(log_mel, lengths=lengths)
                maps = tokens.unflatten(1, grid[:]).transpose(1, 2).flatten(2)  # (b, t, f * C)
                for chunk, found in zip(batch, maps.float().cpu(), strict=True):
                    num = cutter.columns(chunk.length)
                    where = slice(chunk.start // hop, None, len(shifts))
                    embeddings[chunk.clip, where][:num] = found[:num]
        centres = torch.arange(embeddings.shape[1]) * hop + cutter.centre()  # frames
        milliseconds = centres.double() * (1000 * self.log_mel.hop_length / self.sample_rate)
        return embeddings, milliseconds.float().repeat(len(clips), 1)

    # -- saving ----------------------------------------------------------------------------------

    def save(self, folder: str | Path, *, extra: Mapping[str, bytes] | None = None) -> None:
        """Write the encoder folder, whole or not at all; an older encoder there is replaced.

        Args:
            folder: to write.
            extra: further files by name, such as those of `encoder_graph.graph_files`.

        Raises:
            FileExistsError: if the folder holds anything but an encoder.
            ValueError: if the backbone was not made by `ssmast.create_model`.
        """
        config = self._config()
        parameters = sum(parameter.numel() for parameter in self.backbone.parameters())
        card = model_card(config, dim=self.dim, num_parameters=parameters)
        write_folder(folder, config=config, weights=self._weights(), card=card, extra=extra)

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
            "ssmast": {"format": FORMAT, **self.settings(), "info": self.info},
        }

    def _weights(self) -> bytes:
        from safetensors.torch import save

        state = {name: value.contiguous() for name, value in self.backbone.state_dict().items()}
        return save(state, metadata={"format": "pt"})

    # -- parts -----------------------------------------------------------------------------------

    def _chunks(self) -> Chunks:
        return Chunks(self.backbone, self.log_mel, seconds=self.chunk_seconds)

    def _frames_of(self, seconds: float) -> float:
        return seconds * self.sample_rate / self.log_mel.hop_length

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

    def pool(self, log_mel: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Vectors (B, `dim`) of normalised log-mels (B, 1, F, T), differentiable and not cut.

        Args:
            log_mel: what the front end gives; for training, `embed` is not.
            lengths: frames of each clip, where clips were padded to one width.
        """
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
        channels, ends = backbone.block_channels, backbone.stage_ends
        # Block i belongs to the first stage that ends at i or later.
        rows = [grids[1 + bisect_left(ends, index)].freq for index in range(len(channels))]
        wanted = ends if self.layers == "stages" else range(len(channels))
        return [(rows[index], channels[index]) for index in wanted]

    def _is_max(self) -> Tensor:
        """Which numbers of an embedding are maxima over tokens, bool (`dim`,)."""
        parts = []
        for rows, dim in self._pooled_layers():
            part = torch.zeros(pooled_dim(self.pooling, rows, dim), dtype=torch.bool)
            if self.pooling in MAX_MODES:
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
    ours, architecture = config["ssmast"], config["architecture"]
    # A folder from elsewhere may name a model of ours and its sizes, not further files to load.
    foreign = sorted(config["model_args"].keys() & _LOADING_ARGS)
    if ours.get("format") != FORMAT or foreign or not is_model(architecture):
        raise ValueError(
            f"{weights.parent} is not for this version: wanted format {FORMAT} and a model of "
            f"this family, got format {ours.get('format')} and {architecture!r} {foreign or ''}"
        )
    try:
        log_mel = _log_mel(ours["front_end"])
        backbone = create_model(architecture, **config["model_args"])
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
        backbone = create_model(
            config["architecture"], **json.loads(json.dumps(config["model_args"]))
        )
    twin = Encoder(
        backbone,
        _log_mel(encoder.log_mel.settings()),
        pooling=encoder.pooling,
        layers=encoder.layers,
        chunk_seconds=encoder.chunk_seconds,
        info={"network": "untrained", "seed": seed},
    )
    return twin.to(encoder.device).eval()


def _log_mel(settings: dict[str, Any]) -> LogMel:
    return LogMel(**settings)
