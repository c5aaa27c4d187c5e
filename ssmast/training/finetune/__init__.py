"""Supervised fine-tuning: a pretrained encoder and a labelled set become a classifier."""
