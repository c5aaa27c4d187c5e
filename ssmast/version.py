"""The version, below everything that writes it into what it makes."""

__version__ = "0.2.0.dev0"
