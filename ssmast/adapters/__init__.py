"""Encoders behind the interfaces of other evaluation tools; see docs/use.md."""

import hashlib
import json

from ssmast.encoder import Encoder


def name_of(encoder: Encoder, **further: object) -> str:
    """A name that differs wherever embeddings do: weights, pooling, layers, all other settings.

    Args:
        encoder: to name.
        further: settings of the tool's own that change the vectors, plain JSON values.
    """
    settings = json.dumps({**encoder.settings(), **further}, sort_keys=True).encode()
    digest = hashlib.sha256(settings).hexdigest()
    return f"{encoder.sha256[:12]}-{encoder.pooling}-{encoder.layers}-{digest[:8]}"
