"""Embeddings of files, an index of them, and search for similar sounds."""
