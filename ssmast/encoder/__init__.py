"""The encoder that is probed, fine-tuned and served: log-mel, backbone and pooling."""

from ssmast.encoder.encoder import Encoder, load_encoder

__all__ = ["Encoder", "load_encoder"]
