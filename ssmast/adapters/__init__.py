"""Encoders in the clothes that other people's evaluation tools ask for; see docs/use.md."""
