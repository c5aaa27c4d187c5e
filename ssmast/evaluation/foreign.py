"""Encoders of other programs under the same probe: HEAR, timm, transformers, openSMILE.

    ssmast probe encoder=hear:MODULE data=SETS out=FOLDER
    ssmast probe encoder=timm:resnet18 data=SETS out=FOLDER
    ssmast probe encoder=transformers:FOLDER data=SETS layers=best out=FOLDER
    ssmast probe encoder=opensmile:eGeMAPSv02 data=SETS out=FOLDER

Nothing is downloaded: weights lie on this machine already, or one sentence says what is missing.
"""

import hashlib
import importlib
import importlib.util
import json
import math
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ssmast.audio import LogMel, LongSound
from ssmast.files import sha256_of
from ssmast.model import read_tensors

Sound = Tensor | LongSound


class ForeignEncoder(nn.Module):
    """What a probe asks of an encoder, of another program's; see `Embedder`.

    A clip of more than `window_seconds` is cut into windows of equal length. Of their vectors the
    mean by length is taken, of the numbers in `is_max` the largest.

    Attributes:
        dim: length of a vector.
        pooling: how frames become one vector, in words.
        layers: which layers are in it.
        window_seconds: longest window.
        shortest_seconds: shorter clips have silence after them.
    """

    sample_rate = 16000
    dim: int
    pooling = "its own"
    layers = ""
    window_seconds = 30.0
    shortest_seconds = 0.1

    model: Any

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    @property
    def sha256(self) -> str:
        """Hash of the weights, or of what decides the vectors in their place."""
        return self._weights_sha256

    @cached_property
    def _weights_sha256(self) -> str:
        return _weights_sha256(self.model)

    @property
    def layer_dims(self) -> Sequence[int]:
        """Lengths of the layers' vectors, which lie one after the other."""
        return [self.dim]

    @property
    def is_max(self) -> Tensor | None:
        """Bool (dim,): numbers of which windows give their maximum; None for none."""
        return None

    def settings(self) -> dict[str, Any]:
        """What besides the weights decides a vector."""
        names = ("name", "sample_rate", "pooling", "layers", "window_seconds", "shortest_seconds")
        return {name: getattr(self, name) for name in names}

    def vectors(self, waveforms: Tensor) -> Tensor:
        """Windows of one length (B, S) on the CPU -> (B, `dim`)."""
        raise NotImplementedError

    @torch.no_grad()
    def embed_clips(self, waveforms: Sequence[Sound], *, batch_seconds: float = 60.0) -> Tensor:
        """One vector for each clip (S,) at `sample_rate`, float32 (n, `dim`) on the CPU."""
        means, counts = torch.zeros(len(waveforms), self.dim), [len(clip) for clip in waveforms]
        maxima = torch.full_like(means, -math.inf)
        for batch in _batches(counts, self, batch_seconds):
            shortest = round(self.shortest_seconds * self.sample_rate)
            windows = [
                torch.as_tensor(waveforms[clip][start:stop], device="cpu", dtype=torch.float32)
                for clip, start, stop in batch
            ]
            windows = [F.pad(window, (0, max(0, shortest - len(window)))) for window in windows]
            found = self.vectors(torch.stack(windows)).float().cpu()
            if found.shape != (len(batch), self.dim):
                raise ValueError(
                    f"{self.name} gave vectors of shape {tuple(found.shape)} for {len(batch)} "
                    f"sounds, wanted ({len(batch)}, {self.dim})"
                )
            for (clip, start, stop), vector in zip(batch, found, strict=True):
                means[clip] += vector * ((stop - start) / counts[clip])
                maxima[clip] = torch.maximum(maxima[clip], vector)
        return means if self.is_max is None else torch.where(self.is_max, maxima, means)


def _batches(
    counts: Sequence[int], encoder: ForeignEncoder, batch_seconds: float
) -> Iterator[list[tuple[int, int, int]]]:
    """Windows (clip, start, stop) of one length together, each clip's from front to back.

    None is padded to the length of another: with most networks that would move its vector.
    """
    longest = round(encoder.window_seconds * encoder.sample_rate)
    batch: list[tuple[int, int, int]] = []
    for clip in sorted(range(len(counts)), key=lambda clip: (counts[clip], clip)):
        size = math.ceil(counts[clip] / math.ceil(counts[clip] / longest))
        for start in range(0, counts[clip], size):
            window = (clip, start, min(start + size, counts[clip]))
            length = window[2] - start
            full = (len(batch) + 1) * length > batch_seconds * encoder.sample_rate
            if batch and (full or batch[0][2] - batch[0][1] != length):
                yield batch
                batch = []
            batch.append(window)
    if batch:
        yield batch


def _weights_sha256(module: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _package(name: str, *, install: str, wanted_by: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        if (error.name or "").partition(".")[0] != name.partition(".")[0]:
            raise ValueError(f"{wanted_by} cannot be imported: {error}; install it") from error
        raise ValueError(
            f"{wanted_by} needs {name.partition('.')[0]}, which is not installed; {install}"
        ) from error


# -- HEAR ------------------------------------------------------------------------------------------


class HearEncoder(ForeignEncoder):
    """A module with HEAR's `load_model` and `get_scene_embeddings`.

    `hear:MODULE`, or `hear:MODULE:WEIGHTS` for what `load_model` is given.

    Source: Turian et al. 2022 (HEAR), common API.
    """

    def __init__(self, name: str, *rest: str) -> None:
        super().__init__(f"hear:{':'.join((name, *rest))}")
        self._module = _package(name, install="give the name of a module", wanted_by=self.name)
        for wanted in ("load_model", "get_scene_embeddings"):
            if not hasattr(self._module, wanted):
                raise ValueError(
                    f"{self.name} has no {wanted}; wanted a module of the HEAR interface"
                )
        self._weights = ":".join(rest)
        try:
            self.model = self._module.load_model(*[self._weights] * bool(rest))
        except Exception as error:  # whatever the module of someone else raises
            raise ValueError(f"{self.name}: load_model failed: {error}") from error
        self.sample_rate = int(self.model.sample_rate)
        self.dim = int(self.model.scene_embedding_size)

    @property
    def sha256(self) -> str:
        """Hash of the module's file, the weights' file and the weights."""
        files = [getattr(self._module, "__file__", None), self._weights]
        parts = [sha256_of(file) for file in files if file and Path(file).is_file()]
        if isinstance(self.model, nn.Module):
            parts.append(_weights_sha256(self.model))
        return hashlib.sha256(" ".join(parts).encode()).hexdigest()

    def vectors(self, waveforms: Tensor) -> Tensor:
        """(B, S) -> (B, `dim`)."""
        device = next((p.device for p in self.parameters()), torch.device("cpu"))
        return torch.as_tensor(
            self._module.get_scene_embeddings(waveforms.to(device), self.model)
        ).flatten(1)


# -- timm ------------------------------------------------------------------------------------------


class TimmEncoder(ForeignEncoder):
    """An image model of timm on a log-mel spectrogram, its pooled features.

    `timm:NAME` takes weights that timm downloaded before, `timm:NAME:FILE` those of a
    .safetensors file, `timm:NAME:untrained` random ones (seed 0). The spectrogram is that of
    `LogMel`, each window with mean 0 and std 1, as one channel: timm adds up the filters of three.
    A model that takes one size of picture gets the window stretched to it.
    """

    window_seconds = 10.0
    shortest_seconds = 0.64

    def __init__(self, name: str, weights: str = "", *, seed: int = 0) -> None:
        super().__init__(f"timm:{name}" + f":{weights}" * bool(weights))
        self._architecture = name
        timm = _package("timm", install="pip install timm", wanted_by=self.name)
        if not timm.is_model(name):
            close = timm.list_models(f"*{name.partition('.')[0]}*")[:5]
            said = f"; near are {', '.join(close)}" if close else "; see timm.list_models()"
            raise ValueError(f"timm has no model {name!r}{said}")
        wanted: dict[str, Any] = {"in_chans": 1, "num_classes": 0}
        if weights != "untrained":
            state = read_tensors(weights or _cached_timm_weights(timm, name))
            wanted |= {"pretrained": True, "pretrained_cfg_overlay": {"state_dict": state}}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.model = timm.create_model(name, **wanted).eval()
        self.log_mel = LogMel()
        self.sample_rate = self.log_mel.sample_rate
        config = self.model.pretrained_cfg
        self._size = tuple(config["input_size"][1:]) if config.get("fixed_input_size") else None
        width = round(self.shortest_seconds * 100)
        with torch.no_grad():
            blank = torch.zeros(1, 1, *(self._size or (self.log_mel.num_mels, width)))
            self.dim = self.model(blank).shape[1]

    def settings(self) -> dict[str, Any]:
        """What besides the weights decides a vector."""
        return {**super().settings(), "front_end": self.log_mel.settings()}

    def untrained(self, seed: int) -> "TimmEncoder":
        """The same with random weights."""
        return TimmEncoder(self._architecture, "untrained", seed=seed)

    def vectors(self, waveforms: Tensor) -> Tensor:
        """(B, S) -> (B, `dim`)."""
        image = self.log_mel(waveforms.to(self.log_mel.filterbank.device))  # (B, 1, F, T)
        mean, std = image.mean(dim=(2, 3), keepdim=True), image.std(dim=(2, 3), keepdim=True)
        image = (image - mean) / (std + 1e-6)
        if self._size is not None:
            image = F.interpolate(image, size=self._size, mode="bilinear", antialias=True)
        return self.model(image)


def _cached_timm_weights(timm: ModuleType, name: str) -> str:
    """The .safetensors file of a model in the local cache of the Hub."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    config = timm.get_pretrained_cfg(name)
    try:
        if config is None or not config.hf_hub_id:
            raise LocalEntryNotFoundError("no weights")
        return hf_hub_download(
            config.hf_hub_id, config.hf_hub_filename or "model.safetensors", local_files_only=True
        )
    except LocalEntryNotFoundError as error:
        raise ValueError(
            f"the weights of timm:{name} are not on this machine; have timm download them once, "
            f"or give timm:{name}:FILE.safetensors or timm:{name}:untrained"
        ) from error


# -- transformers ----------------------------------------------------------------------------------


class TransformersEncoder(ForeignEncoder):
    """A folder of an audio model in transformers' form: mean and max of hidden states over time.

    Its own feature extractor makes what the network takes. `layers` is last (the network's output)
    or blocks (that of every block, and of what stands before the first).
    """

    pooling = "mean+max over time"

    def __init__(self, *path: str, layers: str = "last", model: nn.Module | None = None) -> None:
        folder = ":".join(path)
        super().__init__(f"transformers:{folder}")
        if layers not in ("last", "blocks"):
            raise ValueError(f"layers of {self.name} must be last or blocks, got {layers}")
        if not (Path(folder) / "config.json").is_file():
            raise FileNotFoundError(
                f"{folder} has no config.json; wanted the folder of an audio model, as "
                "transformers' save_pretrained writes it"
            )
        found = _package(
            "transformers", install="pip install transformers", wanted_by="encoder=transformers:"
        )
        found.utils.logging.disable_progress_bar()  # it would stand among our own lines
        try:
            self.extractor = found.AutoFeatureExtractor.from_pretrained(
                folder, local_files_only=True
            )
            network: Any = model or found.AutoModel.from_pretrained(
                folder, local_files_only=True, use_safetensors=True
            )
            self.sample_rate = int(self.extractor.sampling_rate)
        except (OSError, ValueError, AttributeError) as error:
            why = str(error).strip().split("\n")[0]
            raise ValueError(f"{self.name} is no audio model that can be loaded: {why}") from error
        is_whole = model is None and network.config.is_encoder_decoder
        self.model = (network.get_encoder() if is_whole else network).eval()
        self.layers, self._folder = layers, folder
        self.window_seconds, self._is_padded = _longest_input(self.extractor)
        with torch.no_grad():
            self._widths = [one.shape[2] for one in self._states(torch.zeros(1, self.sample_rate))]
        self.dim = 2 * sum(self._widths)

    @property
    def layer_dims(self) -> Sequence[int]:
        """Mean and max of each layer."""
        return [2 * width for width in self._widths]

    @property
    def is_max(self) -> Tensor:
        """The second half of each layer."""
        return torch.cat([torch.arange(2 * width) >= width for width in self._widths])

    def settings(self) -> dict[str, Any]:
        """What besides the weights decides a vector."""
        return {**super().settings(), "extractor": self.extractor.to_dict()}

    def variant(self, layers: str) -> "TransformersEncoder":
        """The same network with other layers."""
        return TransformersEncoder(self._folder, layers=layers, model=self.model)

    def untrained(self, seed: int) -> "TransformersEncoder":
        """The same with random weights."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return TransformersEncoder(
                self._folder, layers=self.layers, model=type(self.model)(self.model.config)
            )

    def _states(self, waveforms: Tensor) -> list[Tensor]:
        """Hidden states (B, T, C) of the layers asked for."""
        inputs = self.extractor(
            list(waveforms.numpy()), sampling_rate=self.sample_rate, return_tensors="pt"
        )
        device = next(self.model.parameters()).device
        name = self.model.main_input_name
        found = self.model(inputs[name].to(device), output_hidden_states=True)
        states = list(found.hidden_states) if self.layers == "blocks" else [found.last_hidden_state]
        if self._is_padded:  # what stands after the sound is silence of the extractor's
            share = waveforms.shape[1] / (self.window_seconds * self.sample_rate)
            states = [one[:, : max(1, math.ceil(share * one.shape[1]))] for one in states]
        return states

    def vectors(self, waveforms: Tensor) -> Tensor:
        """(B, S) -> (B, `dim`)."""
        states = self._states(waveforms)
        return torch.cat([torch.cat([s.mean(dim=1), s.amax(dim=1)], dim=1) for s in states], dim=1)


def _longest_input(extractor: Any) -> tuple[float, bool]:
    """Seconds that a feature extractor takes at once, and whether it pads shorter ones in time.

    Of AST the tokens are those of a picture, so that silence after a sound is not cut off.
    """
    if hasattr(extractor, "chunk_length"):  # Whisper: seconds
        return float(extractor.chunk_length), True
    frames = getattr(extractor, "max_length", None)
    if hasattr(extractor, "num_mel_bins") and isinstance(frames, int):
        return frames / 100, False  # AST: frames of 10 ms
    return 30.0, False


# -- openSMILE -------------------------------------------------------------------------------------


class OpenSmileEncoder(ForeignEncoder):
    """Functionals of a feature set of openSMILE: eGeMAPSv02 (88 numbers), ComParE_2016 (6373)."""

    pooling = "functionals"
    window_seconds = 600.0
    shortest_seconds = 0.5

    def __init__(self, feature_set: str) -> None:
        super().__init__(f"opensmile:{feature_set}")
        smile = _package("opensmile", install="pip install opensmile", wanted_by=self.name)
        names = [one.name for one in smile.FeatureSet]
        if feature_set not in names:
            raise ValueError(f"openSMILE has no set {feature_set!r}; take one of {names}")
        self._smile = smile.Smile(
            feature_set=smile.FeatureSet[feature_set], feature_level=smile.FeatureLevel.Functionals
        )
        self._version = smile.__version__
        self.dim = len(self._smile.feature_names)

    @property
    def sha256(self) -> str:
        """Hash of the name and the version: there are no weights."""
        return hashlib.sha256(json.dumps([self.name, self._version]).encode()).hexdigest()

    def vectors(self, waveforms: Tensor) -> Tensor:
        """(B, S) -> (B, `dim`)."""
        rows = [
            torch.tensor(self._smile.process_signal(one.numpy(), self.sample_rate).to_numpy())
            for one in waveforms
        ]
        return torch.cat(rows)


FOREIGN: dict[str, type[ForeignEncoder]] = {
    "hear": HearEncoder,
    "timm": TimmEncoder,
    "transformers": TransformersEncoder,
    "opensmile": OpenSmileEncoder,
}
NAMES = "hear:MODULE, timm:NAME, transformers:FOLDER, opensmile:SET"


def is_foreign(encoder: str) -> bool:
    """Whether `encoder=` names an encoder of another program."""
    return ":" in encoder and encoder.partition(":")[0] in FOREIGN


def load_foreign(encoder: str) -> ForeignEncoder:
    """The encoder that KIND:NAME names, on the CPU.

    Raises:
        ValueError, FileNotFoundError: if there is none, or its package is not installed.
    """
    kind, *parts = encoder.split(":")
    if not parts[0]:
        raise ValueError(f"encoder={encoder} names nothing; give one of {NAMES}")
    try:
        return FOREIGN[kind](*parts).eval()
    except TypeError as error:
        raise ValueError(f"encoder={encoder} has a : too many; give one of {NAMES}") from error


def foreign_variants(encoder: ForeignEncoder, pooling: str, layers: str) -> list[ForeignEncoder]:
    """The encoder with the layers asked for; what another program pools is its own business.

    Raises:
        ValueError: for what it does not have.
    """
    if pooling:
        raise ValueError(f"{encoder.name} pools as it does; leave pooling={pooling} out")
    if not layers or layers == encoder.layers:
        return [encoder]
    if not isinstance(encoder, TransformersEncoder):
        raise ValueError(f"{encoder.name} gives one vector a sound; leave layers={layers} out")
    return [encoder.variant(one) for one in (("last", "blocks") if layers == "best" else (layers,))]
