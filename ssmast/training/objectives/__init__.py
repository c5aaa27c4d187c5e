"""One file an objective: what is trained without labels."""
