"""A corpus: clips by number, in files, tars, lists, tables and mixtures, here or at a URL."""
