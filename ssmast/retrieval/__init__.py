"""Embeddings of files, an index of them, and the sounds most like one."""
