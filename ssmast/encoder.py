"""An encoder folder: log-mel front end, backbone and pooling, from waveform to embedding."""

import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from timm.models import save_for_hf
from torch import Tensor, nn

from ssmast.audio import LogMel, read_audio, resample
from ssmast.model import MAST, create_model, merge_pooled, pool_tokens, pooled_dim

logger = logging.getLogger(__name__)

LAYERS = ("last", "stages", "blocks")
_FILES = ("config.json", "model.safetensors", "README.md")
# Padded samples of one batch: keeps an hour of audio, or a thousand clips, within bounded memory.
_BATCH_SECONDS = 40.0

Clip = str | os.PathLike[str] | np.ndarray | Tensor


class Encoder(nn.Module):
    """Waveform -> embedding, the same for every client: probe, export, search, your own code.

    Args:
        backbone: MAST (or another encoder with its interface); a head is not used.
        log_mel: front end with the corpus' mean and std.
        pooling: "mean", "mean+max" or "freq+max" (see `ssmast.model.pool_tokens`).
        layers: "last" for the normed output, "stages" or "blocks" for one pooled vector after
            each, concatenated.
        chunk_seconds: longer audio is cut into pieces of this length, whose embeddings are
            merged: means weighted by length, maxima by maximum.
        info: plain values about how it was made; kept in config.json and the model card.
    """

    def __init__(
        self,
        backbone: MAST,
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
        if not chunk_seconds >= 0.5:
            raise ValueError(f"chunk_seconds must be at least 0.5, got {chunk_seconds}")
        self.backbone, self.log_mel = backbone, log_mel
        self.pooling, self.layers, self.chunk_seconds = pooling, layers, float(chunk_seconds)
        self.info = info or {}
        self._widths = self._layer_widths()

    @property
    def sample_rate(self) -> int:
        """Rate of the waveforms that `forward` takes, in Hz."""
        return self.log_mel.sample_rate

    @property
    def dim(self) -> int:
        """D, the length of an embedding."""
        return sum(pooled_dim(self.pooling, freq, width) for freq, width in self._widths)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.backbone.parameters()).device

    # -- the way of the tensor -------------------------------------------------------------------

    def forward(self, waveform: Tensor, lengths: Sequence[int] | Tensor | None = None) -> Tensor:
        """Waveforms at `sample_rate`, padded to one length, to embeddings; differentiable.

        Args:
            waveform: (B, S).
            lengths: samples of each clip; None if none is padded.

        Returns:
            (B, dim), each clip's what it would be alone.
        """
        log_mel = self.log_mel(waveform)
        frames = None
        if lengths is not None:
            frames = torch.as_tensor([self.log_mel.frames(int(length)) for length in lengths])
        if self.layers == "last":
            outcomes = [self.backbone.encode(log_mel, lengths=frames)]
        else:
            outcomes = self.backbone.encode_blocks(log_mel, lengths=frames)
            if self.layers == "stages":
                outcomes = [outcomes[i] for i in self.backbone.stage_ends]
        pooled = [pool_tokens(x, grid, mode=self.pooling, mask=mask) for x, grid, mask in outcomes]
        return torch.cat(pooled, dim=1)

    def embed(
        self, waveform: Clip | Sequence[Clip], sample_rate: int | None = None
    ) -> Tensor:
        """Embeddings of clips of any kind, rate and length.

        Args:
            waveform: a path; samples (S,) or (B, S), numpy or torch; or a list of any of these,
                of different lengths.
            sample_rate: of the samples in Hz; paths bring their own.

        Returns:
            Float32 (B, dim) on the CPU; B is 1 for a single clip.

        Raises:
            ValueError: for samples without a rate, with another number of axes, none at all, or
                not finite; for a file that cannot be decoded.
            FileNotFoundError: if a path does not exist.
        """
        clips = self._clips(waveform, sample_rate)
        chunk = round(self.chunk_seconds * self.sample_rate)
        pieces = [(i, piece) for i, clip in enumerate(clips) for piece in _cut(clip, chunk)]
        order = sorted(range(len(pieces)), key=lambda p: len(pieces[p][1]))
        vectors = torch.empty(len(pieces), self.dim)
        for batch in _batches(order, [len(piece) for _, piece in pieces], self.sample_rate):
            vectors[batch] = self._embed_batch([pieces[p][1] for p in batch])
        owner = torch.tensor([i for i, _ in pieces])
        weights = torch.tensor([float(len(piece)) for _, piece in pieces])
        return torch.stack(
            [self._merge(vectors[owner == i], weights[owner == i]) for i in range(len(clips))]
        )

    def embed_frames(
        self, waveform: Clip | Sequence[Clip], sample_rate: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """One embedding for each column of the last token grid, with its time.

        Args:
            waveform: as `embed` takes it; several clips must be of one length.
            sample_rate: as in `embed`.

        Returns:
            Float32 (B, N, F'·D), the frequency rows of a column one after the other, and its
            centre in milliseconds (B, N), evenly spaced.

        Raises:
            ValueError: as `embed`, and for clips of different lengths.
        """
        clips = self._clips(waveform, sample_rate)
        if len({len(clip) for clip in clips}) > 1:
            raise ValueError(
                "embed_frames needs clips of one length, got "
                f"{sorted({len(clip) for clip in clips})} samples; call it once a length"
            )
        hop = self.frame_hop_samples
        chunk = max(hop, round(self.chunk_seconds * self.sample_rate) // hop * hop)
        total, columns = len(clips[0]), []
        for start in range(0, total, chunk):
            # One hop of the next chunk goes along, and its column is the next chunk's first.
            batch = [clip[start : start + chunk] for clip in clips]
            tokens = self._frames_of(torch.from_numpy(np.stack(batch)))
            if start + chunk < total:
                tokens = tokens[:, : chunk // hop]
            columns.append(tokens)
        frames = torch.cat(columns, dim=1)
        times = torch.arange(frames.shape[1]) * (hop * 1000.0 / self.sample_rate)
        return frames, times.expand(len(clips), -1).clone()

    @property
    def frame_hop_samples(self) -> int:
        """Samples between the columns of `embed_frames`."""
        stride = self.backbone.patch_embed.stride[1]
        for _, time in self.backbone.stride_q:
            stride *= time
        return stride * self.log_mel.hop_length

    @torch.inference_mode()
    def _frames_of(self, waveform: Tensor) -> Tensor:
        with _evaluating(self):
            log_mel = self.log_mel(waveform.to(self.device))
            x, grid, _ = self.backbone.encode(log_mel)
        x = x.float().unflatten(1, (grid.freq, grid.time))  # (B, N, D) -> (B, f, t, D)
        return x.transpose(1, 2).flatten(2).cpu()

    @torch.inference_mode()
    def _embed_batch(self, pieces: list[np.ndarray]) -> Tensor:
        lengths = [len(piece) for piece in pieces]
        waveform = torch.zeros(len(pieces), max(lengths))
        for row, piece in zip(waveform, pieces, strict=True):
            row[: len(piece)] = torch.from_numpy(piece)
        same = min(lengths) == max(lengths)
        with _evaluating(self):
            return self(waveform.to(self.device), None if same else lengths).float().cpu()

    def _merge(self, vectors: Tensor, weights: Tensor) -> Tensor:
        parts = vectors.split(
            [pooled_dim(self.pooling, freq, width) for freq, width in self._widths], dim=1
        )
        return torch.cat(
            [
                merge_pooled(part, weights, mode=self.pooling, dim=width)
                for part, (_, width) in zip(parts, self._widths, strict=True)
            ]
        )

    def _clips(
        self, waveform: Clip | Sequence[Clip], sample_rate: int | None
    ) -> list[np.ndarray]:
        """Every clip as float32 samples at `sample_rate` of the front end."""
        if isinstance(waveform, list | tuple):
            if not waveform:
                raise ValueError("embed needs at least one clip, got an empty list")
            return [clip for item in waveform for clip in self._clips(item, sample_rate)]
        if isinstance(waveform, str | os.PathLike):
            if not Path(waveform).exists():
                raise FileNotFoundError(f"{waveform} does not exist; give the path of a sound file")
            return [read_audio(waveform, sample_rate=self.sample_rate)]
        if isinstance(waveform, Tensor):
            waveform = waveform.detach().cpu().numpy()
        samples = np.asarray(waveform)
        if samples.ndim not in (1, 2) or samples.size == 0:
            raise ValueError(
                f"waveform must be (samples,) or (clips, samples) and not empty, got shape "
                f"{samples.shape}"
            )
        if not np.issubdtype(samples.dtype, np.floating):
            raise ValueError(
                f"waveform must be floating-point samples within about +-1, got {samples.dtype}; "
                "divide integer samples by their full scale"
            )
        if sample_rate is None or sample_rate <= 0:
            raise ValueError(f"samples need their sample_rate in Hz, got {sample_rate}")
        if not np.isfinite(samples).all():
            raise ValueError("waveform holds NaN or infinity; clean it before embedding")
        rows = np.atleast_2d(samples).astype(np.float32, copy=False)
        return [resample(row, sample_rate, self.sample_rate) for row in rows]

    def _layer_widths(self) -> list[tuple[int, int]]:
        """Frequency rows and channels of every layer that is pooled, seen on a short input."""
        frames = self.backbone.input_size[1]
        log_mel = torch.zeros(1, 1, self.log_mel.num_mels, frames, device=self.device)
        with torch.inference_mode(), _evaluating(self):
            outcomes = self.backbone.encode_blocks(log_mel)
        layers = [(grid.freq, x.shape[-1]) for x, grid, _ in outcomes]
        if self.layers == "last":
            return layers[-1:]
        if self.layers == "stages":
            return [layers[i] for i in self.backbone.stage_ends]
        return layers

    # -- the folder ------------------------------------------------------------------------------

    def settings(self) -> dict[str, Any]:
        """What config.json holds under "ssmast"."""
        return {
            "front_end": self.log_mel.settings(),
            "pooling": self.pooling,
            "layers": self.layers,
            "chunk_seconds": self.chunk_seconds,
            "embedding_dim": self.dim,
            "info": self.info,
        }

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write the encoder folder, whole or not at all; an older encoder there is replaced.

        Raises:
            FileExistsError: if the folder holds something else.
        """
        folder = Path(folder)
        is_encoder = (folder / "config.json").is_file() and (folder / "checksums.json").is_file()
        if folder.exists() and not is_encoder and (folder.is_file() or any(folder.iterdir())):
            raise FileExistsError(f"{folder} exists and is no encoder folder; choose another name")
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}-"))
        try:
            save_for_hf(
                self.backbone,
                str(partial),
                model_config={"ssmast": self.settings()},
                safe_serialization=True,
            )
            (partial / "README.md").write_text(model_card(self), encoding="utf-8")
            sums = {name: _sha256(partial / name) for name in _FILES}
            (partial / "checksums.json").write_text(json.dumps(sums, indent=1), encoding="utf-8")
            partial.chmod(0o755)
            if folder.exists():
                shutil.rmtree(folder)
            partial.rename(folder)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        return folder


def load_encoder(source: str | os.PathLike[str]) -> Encoder:
    """Load an encoder folder, or one from the Hugging Face Hub.

    Args:
        source: folder; or "org/name" or "hf-hub:org/name" where no such folder exists.

    Returns:
        The encoder in evaluation mode, on the CPU.

    Raises:
        FileNotFoundError: if the folder or one of its files is missing.
        ValueError: if a file is not what was written, or does not fit the others.
    """
    folder = _folder_of(source)
    for name in (*_FILES, "checksums.json"):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder} is no encoder folder: {name} is missing")
    _verify(folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if "ssmast" not in config:
        raise ValueError(f"{folder}/config.json has no front end ('ssmast'); export it with ssmast")
    settings = config["ssmast"]
    backbone = _build(config, folder)
    backbone.load_state_dict(load_file(folder / "model.safetensors"))
    encoder = Encoder(
        backbone,
        LogMel(**settings["front_end"]),
        pooling=settings["pooling"],
        layers=settings["layers"],
        chunk_seconds=settings["chunk_seconds"],
        info=settings["info"],
    )
    return encoder.eval()


def random_twin(encoder: Encoder, *, seed: int) -> Encoder:
    """The same encoder with fresh weights: what pretraining has to beat."""
    state = torch.random.get_rng_state()
    try:
        torch.manual_seed(seed)
        backbone = create_model(_architecture(encoder.backbone), **_model_args(encoder.backbone))
    finally:
        torch.random.set_rng_state(state)
    return Encoder(
        backbone,
        LogMel(**encoder.log_mel.settings()),
        pooling=encoder.pooling,
        layers=encoder.layers,
        chunk_seconds=encoder.chunk_seconds,
        info={"network": "untrained", "seed": seed},
    ).eval()


def model_card(encoder: Encoder) -> str:
    """README.md of the folder: what it is, how to use it, how it was made."""
    name = _architecture(encoder.backbone)
    front = encoder.log_mel.settings()
    facts = {key: value for key, value in encoder.info.items() if not isinstance(value, dict)}
    lines = [
        "---",
        "library_name: timm",
        "tags: [audio, feature-extraction, self-supervised, ssmast]",
        "---",
        "",
        f"# {name}: audio encoder",
        "",
        f"Waveform to a {encoder.dim}-dimensional embedding (pooling {encoder.pooling}, layers "
        f"{encoder.layers}).",
        "",
        "```python",
        "import ssmast",
        "",
        'encoder = ssmast.load_encoder("path/of/this/folder")',
        'embedding = encoder.embed("clip.wav")            # (1, D); any rate, any length',
        "```",
        "",
        "The backbone alone, through timm (`import ssmast` registers the architecture):",
        "",
        "```python",
        "import ssmast, timm",
        "",
        'net = timm.create_model("local-dir:path/of/this/folder", pretrained=True)',
        "```",
        "",
        "## Input",
        "",
        *(f"- {key}: {value}" for key, value in front.items()),
        "",
        "## How it was made",
        "",
        *(f"- {key}: {value}" for key, value in facts.items()),
        "",
        "## Limits",
        "",
        f"Trained on views of {encoder.backbone.input_size[1]} frames; audio longer than "
        f"{encoder.chunk_seconds:g} s is embedded in pieces that are merged. It hears what its "
        "training data held; score it on your own labelled clips with `ssmast probe`.",
    ]
    return "\n".join(lines) + "\n"


class _evaluating:  # noqa: N801 - reads as a word where it is used
    """Evaluation mode for a while; the mode that was is put back."""

    def __init__(self, module: nn.Module) -> None:
        self.module, self.was_training = module, module.training

    def __enter__(self) -> None:
        self.module.eval()

    def __exit__(self, *args: object) -> None:
        self.module.train(self.was_training)


def _cut(clip: np.ndarray, chunk: int) -> list[np.ndarray]:
    """Pieces of `chunk` samples; a rest below a tenth of one joins the piece before it."""
    if len(clip) <= chunk:
        return [clip]
    starts = list(range(0, len(clip), chunk))
    if len(clip) - starts[-1] < chunk // 10:
        starts.pop()
    return [clip[a:b] for a, b in zip(starts, [*starts[1:], len(clip)], strict=True)]


def _batches(order: list[int], lengths: list[int], sample_rate: int) -> Iterator[list[int]]:
    """Groups of neighbours in `order` (sorted by length), each of bounded padded length."""
    batch: list[int] = []
    for p in order:
        if batch and (len(batch) + 1) * lengths[p] > _BATCH_SECONDS * sample_rate:
            yield batch
            batch = []
        batch.append(p)
    if batch:
        yield batch


def _folder_of(source: str | os.PathLike[str]) -> Path:
    folder = Path(source)
    if folder.is_dir():
        return folder
    name = str(source).removeprefix("hf-hub:")
    looks_like_hub = name.count("/") == 1 and not name.startswith((".", "/", "~"))
    if str(source).startswith("hf-hub:") or (looks_like_hub and not folder.parent.exists()):
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

        try:
            return Path(snapshot_download(name, allow_patterns=[*_FILES, "checksums.json"]))
        except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
            raise FileNotFoundError(
                f"{source} is no folder, and the Hub gave no encoder of that name: {error}"
            ) from error
    raise FileNotFoundError(f"encoder folder {source} does not exist; give a run's encoder/ folder")


def _verify(folder: Path) -> None:
    try:
        sums = json.loads((folder / "checksums.json").read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{folder}/checksums.json is damaged; export the encoder again") from error
    for name in _FILES:
        if _sha256(folder / name) != sums.get(name):
            raise ValueError(
                f"{folder / name} is not the file that was exported (checksum differs); "
                "copy or export the encoder again"
            )


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _build(config: dict[str, Any], folder: Path) -> MAST:
    try:
        args = {**config.get("model_args", {}), "num_classes": config["num_classes"]}
        return create_model(config["architecture"], **args)
    except (KeyError, TypeError, RuntimeError) as error:
        raise ValueError(f"{folder}/config.json does not describe a known model: {error}") from error


def _architecture(backbone: nn.Module) -> str:
    return backbone.pretrained_cfg["architecture"]


def _model_args(backbone: nn.Module) -> dict[str, Any]:
    from timm.models._input import get_model_args

    return get_model_args(backbone)
