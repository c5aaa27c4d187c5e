"""Encoder: waveform -> embedding, loaded from one folder.

config.json          front end, architecture, pooling; timm reads it as `local-dir:FOLDER`
model.safetensors    weights
whitening.safetensors  of vectors that are whitened
checksums.json       SHA-256 of these, verified on load
README.md            model card
"""

import copy
import hashlib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ssmast.audio import LogMel, LongSound
from ssmast.encoder.card import model_card
from ssmast.encoder.folder import (
    WHITENING,
    build_parts,
    check_config,
    check_finite,
    check_weights,
    config_of,
    find_folder,
    read_folder,
    read_whitening,
    weights_of,
    write_folder,
)
from ssmast.encoder.input import Clip, check_clips, read_clips, read_groups
from ssmast.encoder.published import is_published, read_published
from ssmast.encoder.whitening import Whitening
from ssmast.encoder.windows import WindowCutter, embed_columns, embed_windows, evaluating
from ssmast.model import Backbone
from ssmast.model.pool import statistic_dims
from ssmast.weights import DEFAULT


class Encoder(nn.Module):
    """Log-mel front end, backbone and pooling in one module.

    Args:
        backbone: a model of the family, made by `ssmast.create_model`.
        log_mel: the front end, with the normalisation it was trained with.
        pooling: statistics of the tokens, joined by "+": "mean", "max", "freq" (time mean of each
            frequency row), "std" (over time, of each row), "time2" and "time4" (means of parts of
            the clip); or for AST "cls", the mean of class and distillation token.
        layers: which tokens are pooled: "last", the ends of the "stages", all "blocks", or numbers
            of stages (of an AST: of blocks) such as "2-3"; their vectors are joined. What follows
            the deepest of them is not computed.
        window_seconds: longer clips are cut into equal windows of at most about this length; of
            their vectors the means are averaged by length, of the maxima the largest is taken.
        whitening: of the vectors of clips, after their windows were joined; None for none.
        info: facts for the model card, plain JSON values.

    Attributes:
        precision: what `embed` computes the network in, "fp32" or "bf16"; no part of the folder.

    Raises:
        ValueError: for an unknown pooling or layers, a whitening of another length, or a backbone
            of another family.
    """

    precision: str = "fp32"

    def __init__(
        self,
        backbone: nn.Module,
        log_mel: LogMel,
        *,
        pooling: str = "freq+max",
        layers: str = "last",
        window_seconds: float = 10.0,
        whitening: Whitening | None = None,
        info: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(backbone, Backbone):
            raise ValueError(
                f"backbone must come from ssmast.create_model, got {type(backbone).__name__}"
            )
        check_pooling(backbone, pooling=pooling, layers=layers)
        if not 0 < window_seconds < math.inf:
            raise ValueError(f"window_seconds must be above 0, got {window_seconds}")
        self.backbone = backbone
        self.log_mel = log_mel
        self.pooling, self.layers, self.window_seconds = pooling, layers, float(window_seconds)
        self.whitening = whitening
        self.info = dict(info or {})
        if whitening is not None and len(whitening.mean) != self.dim:
            raise ValueError(
                f"the whitening is of {len(whitening.mean)} numbers, the embedding has {self.dim}"
            )

    # -- settings ------------------------------------------------------------------------------

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
        return [sum(sizes.values()) for sizes in self._statistics]

    @property
    def _statistics(self) -> list[dict[str, int]]:
        """Of each layer, the statistics in its part of an embedding and their lengths."""
        sizes = self.backbone.layer_sizes(self.layers, num_mels=self.log_mel.num_mels)
        return [statistic_dims(self.pooling, *size) for size in sizes]

    @property
    def frame_dim(self) -> int:
        """Length of a vector of `embed_frames`."""
        return self.window_cutter().column_dim

    def frame_hop_ms(self, hop_ms: float | None = None) -> float:
        """Milliseconds between vectors of `embed_frames`, where at most `hop_ms` are asked for."""
        cutter = self.window_cutter()
        return cutter.hop_ms(cutter.shifts(hop_ms))

    @property
    def sha256(self) -> str:
        """Hash of the weights: of model.safetensors, with whitening.safetensors after it if any."""
        whitening = b"" if self.whitening is None else self.whitening.to_bytes()
        return hashlib.sha256(weights_of(self.backbone) + whitening).hexdigest()

    def settings(self) -> dict[str, Any]:
        """Settings that decide an embedding beside the weights, plain JSON values."""
        settings = {
            "front_end": self.log_mel.settings(),
            "pooling": self.pooling,
            "layers": self.layers,
            "window_seconds": self.window_seconds,
            **({} if self.whitening is None else {"whitening": self.whitening.settings()}),
        }
        return settings if self.precision == "fp32" else {**settings, "precision": self.precision}

    def config(self) -> dict[str, Any]:
        """Content of config.json: all but the weights."""
        settings = {key: value for key, value in self.settings().items() if key != "precision"}
        return config_of(self.backbone, settings=settings, info=self.info)

    def variant(
        self,
        *,
        pooling: str = "",
        layers: str = "",
        window_seconds: float = 0.0,
        backbone: nn.Module | None = None,
        info: Mapping[str, Any] | None = None,
    ) -> "Encoder":
        """A copy with other settings, in eval mode; it shares the weights.

        A whitening stays where pooling, layers and backbone do: it was measured on their vectors.

        Args:
            pooling: of the copy; by default this one's, as all that follow.
            layers: of the copy.
            window_seconds: of the copy.
            backbone: of the copy.
            info: of the copy.

        Raises:
            ValueError: for what the backbone does not have.
        """
        pooling, layers = pooling or self.pooling, layers or self.layers
        same = backbone is None and (pooling, layers) == (self.pooling, self.layers)
        made = Encoder(
            self.backbone if backbone is None else backbone,
            copy.deepcopy(self.log_mel),
            pooling=pooling,
            layers=layers,
            window_seconds=window_seconds or self.window_seconds,
            whitening=self.whitening if same else None,
            info=dict(self.info if info is None else info),
        )
        made.precision = self.precision
        return made.eval()

    # -- embedding -------------------------------------------------------------------------------

    def embed(
        self,
        waveform: Clip | Sequence[Clip],
        sample_rate: int | None = None,
        *,
        channel: str | int = "mean",
        batch_seconds: float = 10.0,
    ) -> Tensor:
        """One vector a clip, of sound of any rate and length.

        Args:
            waveform: a file or a part of one, `a.wav#t=0.5,2`, samples (S,) or (B, S), or a list of
                files and samples (S,) of any lengths. Integers, and floats that hold whole numbers,
                are divided by the full scale of the bits that they need (16, or 32).
            sample_rate: Hz of the samples; files know their own.
            channel: of files that have several: mean, first, loudest, left, right, or the number
                of one, from 0 on; samples have one.
            batch_seconds: audio that goes through the network at once; bounds the memory.

        Returns:
            Float32 (B, `dim`) on the CPU; (1, `dim`) for one clip. A clip in a list gets the
            vector that it gets alone.

        Raises:
            ValueError: if samples come without their rate, are empty, not finite, beyond 100 (full
                scale is 1), of no certain scale, or not (S,) or (B, S). AudioError, a kind of it,
                if a file cannot be read.
        """
        rate = self.sample_rate
        groups = read_groups(waveform, sample_rate, wanted=rate, channel=channel)
        vectors = [self.embed_clips(clips, batch_seconds=batch_seconds) for clips in groups]
        found = torch.cat(vectors)
        if not found.isfinite().all():
            raise ValueError(
                "the embedding is not finite, though the sound is: the encoder's weights hold NaN, "
                "or too large numbers for the type that it computes in; load it again"
            )
        return found

    def embed_clips(
        self, waveforms: Sequence[Tensor | LongSound], *, batch_seconds: float = 10.0
    ) -> Tensor:
        """`embed` for float clips (S,) that are at `sample_rate` already, not checked for NaN.

        Raises:
            ValueError: for a clip that is not float samples (S,).
        """
        check_clips(waveforms, rate=self.sample_rate)
        parts = [part for sizes in self._statistics for part in sizes.items()]
        is_max = [name == "max" for name, length in parts for _ in range(length)]
        with evaluating(self):
            vectors = embed_windows(
                self.statistics,
                waveforms,
                self.window_cutter(),
                is_max=torch.tensor(is_max, device="cpu"),
                batch_seconds=batch_seconds,
                precision=self.precision,
            )
            return vectors if self.whitening is None else self._whitened(vectors)

    @torch.no_grad()
    def _whitened(self, vectors: Tensor) -> Tensor:
        assert self.whitening is not None
        return self.whitening(vectors.to(self.device)).float().cpu()

    def embed_frames(
        self,
        waveform: Clip,
        sample_rate: int | None = None,
        *,
        hop_ms: float | None = None,
        channel: str | int = "mean",
        batch_seconds: float = 10.0,
    ) -> tuple[Tensor, Tensor]:
        """One vector a time column of tokens: the frequency rows of the deepest layer, joined.

        Args:
            waveform: a file, or samples (S,) or (B, S).
            sample_rate: Hz of the samples; files know their own.
            hop_ms: longest time between vectors, such as 50; None for the network's own (a column
                of tokens). The network then goes over the clip several times, each time a little
                later: that costs as many times the time, and gives new vectors, not interpolated
                ones.
            channel: as `embed`.
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
        clips = read_clips(waveform, sample_rate, wanted=self.sample_rate, channel=channel)
        cutter = self.window_cutter()
        shifts = cutter.shifts(hop_ms)
        with evaluating(self):
            embeddings = embed_columns(
                clips, cutter, shifts=shifts, batch_seconds=batch_seconds, precision=self.precision
            )
        milliseconds = cutter.centres_ms(embeddings.shape[1], shifts)
        return embeddings, milliseconds.repeat(len(clips), 1)

    def forward(self, waveform: Tensor) -> Tensor:
        """Vectors (B, `dim`) of samples (B, S) at `sample_rate`, differentiable and not cut.

        For what takes a module as it is: a training loop, `torch.compile`, the export. `embed` is
        for sound of any rate, length and kind.
        """
        return self.pool(self.log_mel(waveform))

    def pool(self, log_mel: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Vectors (B, `dim`) of normalised log-mels (B, 1, F, T), differentiable and not cut.

        Args:
            log_mel: of the front end.
            lengths: frames of each clip, where clips were padded to one width.
        """
        vectors = self.statistics(log_mel, lengths)
        return vectors if self.whitening is None else self.whitening(vectors)

    def statistics(self, log_mel: Tensor, lengths: Tensor | None = None) -> Tensor:
        """What `pool` returns, before the whitening."""
        return self.backbone.embed(
            log_mel, lengths=lengths, layers=self.layers, pooling=self.pooling
        )

    # -- saving ----------------------------------------------------------------------------------

    def save(self, folder: str | Path, *, extra: Mapping[str, bytes] | None = None) -> None:
        """Write the encoder folder, whole or not at all; an older encoder there is replaced.

        Args:
            folder: to write.
            extra: further files by name, such as those of `graph.graph_files`.

        Raises:
            FileExistsError: if the folder holds anything but an encoder.
            ValueError: if the backbone was not made by `ssmast.create_model`, or was adapted since
                so that the folder would not load.
        """
        config = self.config()
        parameters = sum(parameter.numel() for parameter in self.backbone.parameters())
        card = model_card(config, dim=self.dim, num_parameters=parameters)
        weights = weights_of(self.backbone)
        check_weights(config, weights)
        files = dict(extra or {})
        if self.whitening is not None:
            files[WHITENING] = self.whitening.to_bytes()
        write_folder(folder, config=config, weights=weights, card=card, extra=files)

    # -- parts -----------------------------------------------------------------------------------

    def window_cutter(self) -> WindowCutter:
        """Cuts long clips as this encoder's settings say."""
        level = self.backbone.deepest_level(self.layers)
        return WindowCutter(self.backbone, self.log_mel, seconds=self.window_seconds, level=level)


def check_pooling(backbone: Backbone, *, pooling: str, layers: str) -> None:
    """Refuse what this backbone does not have.

    Raises:
        ValueError: for an unknown pooling or layers, or "cls" without class tokens.
    """
    backbone.blocks_of(layers)
    backbone.check_pooling(pooling)


def load_encoder(path: str | Path = DEFAULT, *, precision: str = "fp32") -> Encoder:
    """An encoder, on the CPU and in eval mode.

    Args:
        path: encoder folder, or a name on the Hugging Face Hub (`org/name`); by default the encoder
            that comes with the package. Also a folder that transformers wrote of an AST, or a
            .safetensors file of one: its front end is Kaldi's, with the statistics of its
            preprocessor_config.json or AudioSet's, and shorter clips are padded as AST pads them.
        precision: what `embed` computes the network in: "fp32", or "bf16".

    Raises:
        FileNotFoundError: if there is none, or one of its files is missing.
        ValueError: if a file is damaged.
    """
    from safetensors.torch import load_file

    source = Path(path) if Path(path).suffix == ".safetensors" else find_folder(str(path))
    if source.is_file() or is_published(source):
        encoder = Encoder(**read_published(source))
        check_finite(encoder.backbone.state_dict(), source)
        encoder.precision = precision
        return encoder.eval()
    config, weights = read_folder(source)
    check_config(config, folder=weights.parent)
    ours = config["ssmast"]
    try:
        encoder = Encoder(
            *build_parts(config),
            pooling=ours["pooling"],
            layers=ours["layers"],
            # 0.1.0 wrote chunk_seconds
            window_seconds=ours.get("window_seconds") or ours["chunk_seconds"],
            whitening=read_whitening(ours, weights.parent),
            info=ours.get("info", {}),
        )
        state = load_file(weights)
        encoder.backbone.load_state_dict(state)
    except (KeyError, TypeError, RuntimeError) as error:
        reason = str(error).split("\n")[0]
        raise ValueError(
            f"{weights.parent} cannot be loaded: its config.json and weights do not make an "
            f"encoder of this version ({reason})"
        ) from error
    check_finite(state, weights.parent)
    encoder.precision = precision
    return encoder.eval()
