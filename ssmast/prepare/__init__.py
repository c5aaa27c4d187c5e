"""Any audio -> FLAC or Opus shards with a manifest, in units of work that may stop at any point."""

from ssmast.prepare.work import prepare_corpus

__all__ = ["prepare_corpus"]
