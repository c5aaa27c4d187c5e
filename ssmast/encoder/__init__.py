"""One folder -> log-mel + backbone + pooling: the encoder that is probed, fine-tuned and served."""

from ssmast.encoder.encoder import Encoder, load_encoder

__all__ = ["Encoder", "load_encoder"]
