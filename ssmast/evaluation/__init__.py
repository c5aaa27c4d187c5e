"""Evaluation: a frozen encoder becomes a number."""
