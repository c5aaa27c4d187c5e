"""The only place where time passes: settings, schedules, checkpoints and the training loop."""
