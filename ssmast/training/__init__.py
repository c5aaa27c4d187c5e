"""Objectives, their step and loop, checkpoints, and the folder of a run."""
