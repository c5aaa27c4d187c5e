"""Any audio -> FLAC or Opus shards with a manifest, in jobs that may stop at any point."""

from ssmast.prepare.pipeline import prepare_corpus

__all__ = ["prepare_corpus"]
