"""Step -> value. Pure functions: a resumed run asks for the same step and gets the same value."""

import math


def cosine(step: int, *, steps: int, start: float, end: float) -> float:
    """From `start` at step 0 to `end` at step `steps - 1` along half a cosine."""
    progress = min(max(step / max(steps - 1, 1), 0.0), 1.0)
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * progress))


def warmup_cosine(step: int, *, steps: int, warmup_steps: int, peak: float, end: float) -> float:
    """Linear from peak / warmup_steps up to `peak`, then a cosine down to `end`."""
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    return cosine(step - warmup_steps, steps=steps - warmup_steps, start=peak, end=end)
