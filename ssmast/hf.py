"""An encoder folder as a model of transformers: `import ssmast.hf`, then its Auto classes open it.

    import ssmast.hf
    from transformers import AutoFeatureExtractor, AutoModel

    ssmast.hf.EncoderModel.from_pretrained("runs/mine/encoder").save_pretrained("mine")
    extractor = AutoFeatureExtractor.from_pretrained("mine")
    model = AutoModel.from_pretrained("mine")
    model(**extractor(waveform, sampling_rate=48000)).pooler_output     # those of Encoder.embed

What is saved is an encoder folder still, with one file more. No code comes from the folder.
"""

import os
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoModel,
    BatchFeature,
    FeatureExtractionMixin,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.modeling_outputs import BaseModelOutputWithPooling

from ssmast.classifier import window_log_mels
from ssmast.encoder import Encoder, load_encoder
from ssmast.encoder.folder import EXTRACTOR, MODEL_TYPE
from ssmast.encoder.input import Clip, batch_of, read_clips

_NOT_OFFERED = (
    "device_map", "max_memory", "quantization_config", "subfolder", "state_dict", "gguf_file",
    "load_in_8bit", "load_in_4bit",
)  # fmt: skip

# What an extractor may be asked for, since it is what is done.
_DONE = {
    "padding": (True, "longest"), "return_attention_mask": (True, None),
    "truncation": (False, None), "max_length": (None,), "pad_to_multiple_of": (None,),
}  # fmt: skip


class EncoderConfig(PreTrainedConfig):
    """The config.json of an encoder folder."""

    model_type = MODEL_TYPE


class EncoderExtractor(FeatureExtractionMixin):
    """Sound -> samples at the encoder's rate; the front end itself is a part of the model.

    Args:
        sampling_rate: of the encoder, in Hz.
        kwargs: further settings, kept.
    """

    model_input_names = ("input_values", "attention_mask")

    def __init__(self, sampling_rate: int = 16000, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.sampling_rate = sampling_rate

    def __call__(
        self,
        raw_speech: Clip | Sequence[Clip],
        sampling_rate: int | None = None,
        return_tensors: str | None = "pt",
        **others: Any,
    ) -> BatchFeature:
        """Clips of any length as (B, S), zeros after the shorter ones, and a mask of what is sound.

        Args:
            raw_speech: what `Encoder.embed` takes.
            sampling_rate: Hz of the samples; files know their own.
            return_tensors: "pt" or "np".
            others: what other extractors are asked for, if it is what this one does: padding to the
                longest with a mask, nothing cut off.

        Raises:
            ValueError: as `Encoder.embed`, and for others that it does not do.
        """
        if lacking := sorted(key for key, way in others.items() if way not in _DONE.get(key, ())):
            raise ValueError(
                f"an extractor of ssmast has no {', '.join(f'{k}={others[k]!r}' for k in lacking)};"
                " it pads clips to the longest, with a mask, and cuts none: leave that out"
            )
        clips = read_clips(raw_speech, sampling_rate, wanted=self.sampling_rate)
        length = max(map(len, clips))
        values = np.zeros((len(clips), length), dtype=np.float32)
        mask = np.zeros((len(clips), length), dtype=np.int64)
        for row, clip in enumerate(clips):
            values[row, : len(clip)], mask[row, : len(clip)] = np.asarray(clip[:]), 1
        found = {"input_values": values, "attention_mask": mask}
        return BatchFeature(found, tensor_type=return_tensors)


class EncoderModel(PreTrainedModel):
    """An encoder behind the interface of transformers.

    Args:
        config: not used; what decides lies in the encoder.
        encoder: from `load_encoder`.

    Raises:
        ValueError: without an encoder, as of `AutoModel.from_config`: a config has no weights.
    """

    config_class = EncoderConfig
    main_input_name = "input_values"

    def __init__(self, config: EncoderConfig, encoder: Encoder | None = None) -> None:
        super().__init__(config)
        if encoder is None:
            raise ValueError("a config has no weights of an encoder; use from_pretrained(FOLDER)")
        self.encoder = encoder

    @classmethod
    def from_pretrained(  # pyright: ignore[reportIncompatibleMethodOverride]
        cls,
        path: str | os.PathLike[str],
        *_: Any,
        revision: str | None = None,
        dtype: torch.dtype | str | None = None,
        torch_dtype: torch.dtype | str | None = None,
        **others: Any,
    ) -> "EncoderModel":
        """The encoder of a folder or of the Hub, as `load_encoder` reads and checks it.

        Args:
            path: folder, or name on the Hub.
            revision: branch, tag or commit there.
            dtype: of the weights; "auto" and None for that of the folder.
            torch_dtype: older name of `dtype`.
            others: what the Auto classes add.

        Raises:
            ValueError: for what transformers offers and this model has not.
        """
        if lacking := sorted(key for key in _NOT_OFFERED if others.get(key)):
            raise ValueError(
                f"an encoder of ssmast is loaded without {', '.join(lacking)}; load it plainly, "
                "and move or change it afterwards"
            )
        name = os.fspath(path)
        if revision not in (None, "main") and not os.path.isdir(name):
            name = f"{name}@{revision}"
        model = cls(EncoderConfig(), load_encoder(name)).eval()
        wanted = torch_dtype if dtype is None else dtype
        if wanted not in (None, "auto"):
            model.encoder.to(getattr(torch, wanted) if isinstance(wanted, str) else wanted)
        return model

    def save_pretrained(self, folder: str | os.PathLike[str], **_: Any) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Write the encoder folder, and what AutoFeatureExtractor reads."""
        extractor = EncoderExtractor(self.encoder.sample_rate).to_json_string().encode()
        self.encoder.save(os.fspath(folder), extra={EXTRACTOR: extractor})

    def forward(
        self, input_values: Tensor, attention_mask: Tensor | None = None, **_: Any
    ) -> BaseModelOutputWithPooling:
        """Samples (B, S) -> `pooler_output` (B, D), in training differentiable and not cut.

        Args:
            input_values: at the encoder's rate.
            attention_mask: (B, S), 1 where there is sound, from the first sample on.

        Raises:
            ValueError: for samples or a mask that are not so.
        """
        if input_values.ndim != 2:
            raise ValueError(
                f"input_values must be (batch, samples), got shape {tuple(input_values.shape)}"
            )
        lengths = torch.full((len(input_values),), input_values.shape[1], device="cpu")
        if attention_mask is not None:
            _check_mask(attention_mask, input_values)
            lengths = attention_mask.sum(dim=1).long().cpu()
            input_values = input_values.masked_fill(attention_mask == 0, 0)
        encoder = self.encoder
        if self.training:
            fewest = encoder.backbone.fewest_frames
            log_mel, frames = window_log_mels(encoder.log_mel, input_values, lengths, fewest=fewest)
            vectors = encoder.pool(log_mel, frames)
        else:
            samples = torch.from_numpy(batch_of(input_values))
            clips = [row[:length] for row, length in zip(samples, lengths.tolist(), strict=True)]
            vectors = encoder.embed_clips(clips).to(input_values.device)
        return BaseModelOutputWithPooling(pooler_output=cast(torch.FloatTensor, vectors))


def _check_mask(mask: Tensor, samples: Tensor) -> None:
    """Refuse a mask of other than sound from the first sample on: it would be cut wrongly."""
    if mask.shape != samples.shape:
        raise ValueError(
            f"attention_mask must have the shape of input_values, {tuple(samples.shape)}, got "
            f"{tuple(mask.shape)}"
        )
    steps = mask.int().diff(dim=1)
    if not (mask[:, :1] == 1).all() or (steps > 0).any():
        raise ValueError(
            "attention_mask must be 1 from the first sample of each clip on, then 0; put zeros "
            "after a clip and not before it"
        )


AutoConfig.register(MODEL_TYPE, EncoderConfig, exist_ok=True)
AutoModel.register(EncoderConfig, EncoderModel, exist_ok=True)
AutoFeatureExtractor.register(EncoderConfig, EncoderExtractor, exist_ok=True)
