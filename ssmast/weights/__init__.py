"""The encoder that comes with the package, and where the sound it learned from is from.

mast_nano/       an encoder folder as `ssmast export` writes it
sources.csv      collections of sound: licence, attribution, where they are from
clips.csv        every clip: its collection and the beginning of the SHA-256 of its file
"""

from pathlib import Path

DEFAULT = "default"
"""What `encoder=`, `init=` and `load_encoder` call it."""
FOLDER = Path(__file__).parent / "mast_nano"
