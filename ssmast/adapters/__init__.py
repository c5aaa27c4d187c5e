"""Encoders behind the interfaces of other evaluation tools; see docs/use.md."""
