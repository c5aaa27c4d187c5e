"""The collapse alarm: reads the logged numbers and says in one sentence what fails and what to do.

It has no state but the lines of `metrics.jsonl`, so a resumed run is watched from where it was.
An untrained encoder's embeddings lie close together, and its loss is that of guessing; a verdict
therefore needs evidence that a healthy start does not give, in every line of a window of at least
`WINDOW_STEPS` steps:

- spread of the embeddings relative to their own rounding and main direction (effective rank);
- the student's distance from its own moving average, relative to the weights;
- keys of the step just done that the queue lacks, and its spread relative to those keys';
- what was found before and is no longer found;
- that nothing is found at all, while the loss is above that of guessing or the rank falls.
"""

import logging
from collections import deque
from collections.abc import Iterable
from typing import Any

logger = logging.getLogger(__name__)

WINDOW_STEPS, WINDOW_ROWS = 20, 3

# Healthy runs here: rank above 4, std above 0.1, distance below 0.1. A learning rate 20 times too
# high: rank 1.0 to 1.9, distance 0.3 to 0.9; 100 times: distance above 1.5.
_FLAT_RANK, _FLAT_STD = 2.0, 1e-3
_FAR = 1.0
_ROUNDING = 1e-6
# A network that finds this share of the positives is not collapsed, whatever its shape.
_FINDS = 0.2
# Nothing is found below this share; the loss is above guessing beyond the first of these parts of
# it, and well below it under the second; a rank below half of that of the first step has fallen.
_NOTHING, _ABOVE_GUESSING, _BELOW_GUESSING, _FALLEN = 0.005, 1.02, 0.9, 0.5

Row = dict[str, Any]


class AlarmError(ValueError):
    """The alarm stopped the run, whose state is saved."""


class Alarm:
    """Watches the lines of `metrics.jsonl` as they come.

    Args:
        mode: "warn", "stop" or "off".
        num_embeddings: vectors that the rank is measured on; a few cannot have a high one.
        history: lines written before, by an earlier part of the run.
    """

    def __init__(
        self, *, mode: str = "warn", num_embeddings: int = 512, history: Iterable[Row] = ()
    ) -> None:
        self.mode = mode
        self._flat_rank = 1 + (_FLAT_RANK - 1) * min(1.0, (num_embeddings - 1) / 15)
        self._window: deque[Row] = deque()
        self._first: Row | None = None
        self._best, self._best_step, self._peak_lr = 0.0, 0, 0.0
        self._said: dict[str, str] = {}
        self._is_raised = False  # a resumed run is stopped by a line of its own only
        for row in history:
            if "loss" in row or row.get("skipped"):  # others hold scores
                self._take(row)
                self._said = row.get("alarms", {})

    def look(self, row: Row) -> dict[str, str]:
        """What fails after this line: kind -> sentence; a new one is logged as a warning."""
        if self.mode == "off":
            return {}
        self._take(row)
        raised = self._verdicts() if self._is_full() else {}
        for kind in raised.keys() - self._said.keys():
            logger.warning("ALARM (%s): %s", kind.replace("_", " "), raised[kind])
        self._said, self._is_raised = raised, bool(raised)
        return raised

    @property
    def wants_stop(self) -> bool:
        """True while something fails and the run was to be stopped for it."""
        return self.mode == "stop" and self._is_raised

    @property
    def said(self) -> str:
        """The sentences that stand."""
        return "; ".join(self._said.values())

    def _take(self, row: Row) -> None:
        if row.get("skipped"):
            self._window.clear()  # a step that stood still proves nothing either way
        if any(row.get(key) is None for key in _NEEDED):
            return
        self._first = self._first or row
        self._peak_lr = max(self._peak_lr, row["lr"])
        self._window.append(row)
        while len(self._window) > WINDOW_ROWS and self._span(1) >= WINDOW_STEPS:
            self._window.popleft()
        found = _mean_of_known(self._window, "accuracy")
        if self._is_full() and found > self._best:
            self._best, self._best_step = found, row["step"]

    def _span(self, start: int) -> int:
        return self._window[-1]["step"] - self._window[start]["step"]

    def _is_full(self) -> bool:
        return len(self._window) >= WINDOW_ROWS and self._span(0) >= WINDOW_STEPS

    def _verdicts(self) -> dict[str, str]:
        verdicts = {"queue": self._queue() if self._has(_OF_QUEUE) else ""}
        # An objective that looks for nothing (BYOL) is judged by the shape of its embeddings alone.
        if _mean_of_known(self._window, "accuracy") < _FINDS:
            verdicts |= {"learning_rate": self._learning_rate()}
            if not verdicts["learning_rate"]:
                verdicts |= {"constant_encoder": self._constant()}
            if not any(verdicts.values()):
                verdicts |= {"nothing_found": self._nothing_found()}
        return {kind: sentence for kind, sentence in verdicts.items() if sentence}

    def _is_flat(self, row: Row) -> bool:
        if any(row.get(key) is None for key in ("feature_std", "rank_embedding")):
            return False
        return row["feature_std"] < _FLAT_STD or row["rank_embedding"] < self._flat_rank

    def _nothing_found(self) -> str:
        """No positive in a whole window, which a healthy start has too; but not with what it has.

        A loss above guessing for a whole window is no noise: it says that positives are further
        away than strangers.
        """
        rows, first, now = self._window, self._first, self._now
        assert first is not None
        if not self._has({"accuracy"}) or _mean(rows, "accuracy") > _NOTHING:
            return ""
        signs: list[str] = []
        guessed = [row.get("chance_loss") or first["loss"] for row in rows]
        if all(row["loss"] > _ABOVE_GUESSING * g for row, g in zip(rows, guessed, strict=True)):
            signs.append(f"the loss rose to {now['loss']:.2f}, above {guessed[-1]:.2f} of guessing")
        before = first.get("rank_embedding") or 0.0
        learns = any(
            row["loss"] < _BELOW_GUESSING * g for row, g in zip(rows, guessed, strict=True)
        )
        if (
            not learns
            and self._has({"rank_embedding"})
            and all(row["rank_embedding"] < _FALLEN * before for row in rows)
        ):
            signs.append(f"the rank fell from {before:.1f} to {now['rank_embedding']:.1f}")
        if not signs:
            return ""
        return (
            f"none of the positives is found and {' and '.join(signs)}: give more and more varied "
            "sound (see `ssmast doctor data=`), a smaller loss.queue_size where there is one, or "
            "a lower optim.lr"
        )

    def _constant(self) -> str:
        if not all(self._is_flat(row) for row in self._window):
            return ""
        return (
            f"since the first step all clips get nearly the same embedding ({_shape(self._now)}): "
            "check that the audio is neither silent nor always the same, that views.* leave "
            "something of it, and that the starting weights are sound"
        )

    def _learning_rate(self) -> str:
        first, now = self._first, self._now
        assert first is not None
        lower = (
            f"lower optim.lr (up to {self._peak_lr:.2g} so far) to a tenth, or lengthen "
            "optim.warmup"
        )
        has_teacher = self._has({"teacher_distance"})
        if has_teacher and all(row["teacher_distance"] > _FAR for row in self._window):
            return (
                f"the student is {now['teacher_distance']:.1f} times the size of the teacher's "
                f"weights away from it, and finds {now['accuracy']:.0%} of the positives: {lower}"
            )
        if all(self._is_flat(row) for row in self._window) and not self._is_flat(first):
            return (
                f"the embeddings fell onto one point or line ({_shape(first)} at step "
                f"{first['step']}, {_shape(now)} at step {now['step']}): {lower}"
            )
        is_lost = _mean_of_known(self._window, "accuracy") < 0.2 * self._best and self._best > 0.1
        if (
            is_lost
            and self._has({"chance_loss"})
            and _mean(self._window, "loss") > 0.95 * _mean(self._window, "chance_loss")
        ):
            return (
                f"what was learnt is lost: {self._best:.0%} of the positives were found around "
                f"step {self._best_step}, {now['accuracy']:.1%} now, and the loss of "
                f"{now['loss']:.2f} is that of guessing: {lower}"
            )
        return ""

    def _queue(self) -> str:
        seen = self._queue_fault()
        return seen and (
            f"the queue of negatives is dead, {seen}: repair what enqueues keys, or train without "
            "it (loss.queue_size=0)"
        )

    def _queue_fault(self) -> str:
        rows, now = self._window, self._now
        lacks_newest = all(row["queue_newest"] < 1 for row in rows)
        if lacks_newest and not any(row["queue_fill"] for row in rows):
            return "it stays empty"
        # Relative to the step's own keys, which in an untrained encoder nearly coincide as well.
        if all(row["queue_std"] < 0.1 * row["key_std"] > _ROUNDING for row in rows):
            if not any(row["queue_fill"] for row in rows):
                return ""  # there is none
            return (
                f"it holds one key over and over (std {now['queue_std']:.1g}, a step's keys have "
                f"{now['key_std']:.1g})"
            )
        if lacks_newest:
            return f"it is {now['queue_fill']:.0%} full and lacks the keys just put in"
        if now["queue_age"] - rows[0]["queue_age"] > 0.9 * self._span(0):
            return f"its keys are {now['queue_age']:.0f} steps old and are not replaced"
        return ""

    def _has(self, keys: set[str]) -> bool:
        """Whether every line of the window holds these numbers."""
        return all(row.get(key) is not None for row in self._window for key in keys)

    @property
    def _now(self) -> Row:
        return self._window[-1]


_NEEDED = {"step", "loss", "lr"}
# What only an objective with a teacher and a queue can say.
_OF_QUEUE = {"queue_fill", "queue_age", "queue_newest", "queue_std", "key_std"}


def _mean(rows: Iterable[Row], key: str) -> float:
    values = [row[key] for row in rows]
    return sum(values) / len(values)


def _mean_of_known(rows: Iterable[Row], key: str) -> float:
    """Mean over the lines that hold it; 0 where none does."""
    known = [row for row in rows if row.get(key) is not None]
    return _mean(known, key) if known else 0.0


def _shape(row: Row) -> str:
    return f"effective rank {row['rank_embedding']:.1f}, std {row['feature_std']:.1g}"
