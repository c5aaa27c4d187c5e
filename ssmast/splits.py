"""Which clips train, validate and test, by rules that never let a fold leak; and their hash.

Below `evaluation` and `datasets`, because both must hash the same clips to the same value.
"""

import hashlib
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

HELD_OUT = 0.15

_PARTS: dict[str, str] = dict.fromkeys(("train", "training"), "train")
_PARTS |= dict.fromkeys(("valid", "validation", "val", "dev"), "valid")
_PARTS |= dict.fromkeys(("test", "testing"), "test")


@dataclass(frozen=True, kw_only=True)
class Split:
    """Positions of the clips of each part; the learning rate is chosen on `valid` alone."""

    name: str
    train: NDArray[np.int64]
    valid: NDArray[np.int64]
    test: NDArray[np.int64]

    @classmethod
    def of_test(cls, name: str, test: NDArray[np.int64]) -> "Split":
        """Clips that are not trained on."""
        none = np.zeros(0, dtype=np.int64)
        return cls(name=name, train=none, valid=none, test=test)

    def parts(self) -> dict[str, NDArray[np.int64]]:
        """The three parts by name."""
        return {"train": self.train, "valid": self.valid, "test": self.test}


def ids_sha256(
    clips: Sequence[str], splits: Sequence[Split], positions: NDArray[np.int64] | None = None
) -> str:
    """Hash of the sorted (clip, split, part) lines: equal if the same clips play the same parts.

    The one formula of every result file (`ssmast probe`, `finetune`, `evaluate`, `cluster`) and of
    the task.json that `ssmast prepare task=` writes.

    Splits hold positions in `clips`; with `positions`, these clips alone are hashed.
    """
    kept = None if positions is None else set(positions.tolist())
    lines = sorted(
        f"{clips[index]}\t{split.name}\t{part}\n"
        for split in splits
        for part, indices in split.parts().items()
        for index in indices.tolist()
        if kept is None or index in kept
    )
    return hashlib.sha256("".join(lines).encode("utf-8", "surrogateescape")).hexdigest()


def named_parts(
    clips: list[str],
    labels: list[str],
    values: list[str],
    *,
    groups: list[str] | None = None,
    fraction: float = HELD_OUT,
) -> Split:
    """One split from a column of train, valid and test.

    Without a valid part, a fraction of the training clips is held out, see `hold_out`.

    Raises:
        ValueError: if a value is none of the names (validation, val, dev are valid's).
    """
    for clip, value in zip(clips, values, strict=True):
        if not part_of(value):
            raise ValueError(
                f"a split must be train, valid or test, got {value!r} for clip {clip!r}; known are "
                f"{', '.join(_PARTS)}"
            )
    column = np.array([part_of(value) for value in values])
    train, valid, test = (np.flatnonzero(column == part) for part in ("train", "valid", "test"))
    if not len(valid) and len(train):
        held = hold_out(clips, labels, groups=groups, fraction=fraction, rows=train)
        train, valid = train[~held], train[held]
    return Split(name="split", train=train, valid=valid, test=test)


TESTED = 0.2
"""Fraction of each class that tests, where nothing says which clips do."""


def with_test_part(
    clips: Sequence[str],
    labels: Sequence[str],
    parts: Sequence[str],
    *,
    groups: Sequence[str] | None = None,
) -> list[str]:
    """The part of each clip, the test part drawn from what trains; see `hold_out`.

    Args:
        clips: names; their hashes make the choice.
        labels: of each; a clip with an empty one is not drawn.
        parts: of each as far as they are known; empty for train.
        groups: what no two parts may share.

    Raises:
        ValueError: if there are fewer than two groups.
    """
    rows = [i for i, label in enumerate(labels) if label and part_of(parts[i]) in ("", "train")]
    tested = hold_out(clips, labels, groups=groups, fraction=TESTED, rows=rows)
    drawn = [part or "train" for part in parts]
    for k in np.flatnonzero(tested):
        drawn[rows[int(k)]] = "test"
    if groups is not None:  # their clips without a label go with them
        gone = {groups[i] for i in range(len(clips)) if drawn[i] == "test"}
        for i, group in enumerate(groups):
            if group in gone and part_of(drawn[i]) == "train" and not labels[i]:
                drawn[i] = "test"
    return drawn


def part_of(value: str) -> str:
    """Which of train, valid and test a word means; empty for none of them."""
    return _PARTS.get(value.strip().lower(), "")


def ordered_parts(parts: Iterable[str]) -> list[str]:
    """Train, valid, test, then folds by number.

    >>> ordered_parts({"test", "10", "train", "9"})
    ['train', 'test', '9', '10']
    """
    known = {name: f"{i}" for i, name in enumerate(("train", "valid", "test"))}
    return sorted(parts, key=lambda name: (known.get(name, "9"), name.zfill(8)))


def other_copies(here: Mapping[str, int], copies: Mapping[str, Mapping[str, int]]) -> list[str]:
    """Where the copy of a set is not that of a paper, a sentence each.

    >>> other_copies({"train": 9, "test": 2}, {"A 2023": {"train": 10, "test": 2}})
    ['A 2023 had train 10 (here 9, -1)']
    """
    said = []
    for paper, counts in copies.items():
        words = [
            f"{part} {counts[part]:,} (here {here.get(part, 0):,}, "
            f"{here.get(part, 0) - counts[part]:+,})"
            for part in ordered_parts(counts)
            if here.get(part, 0) != counts[part]
        ]
        if words:
            said.append(f"{paper} had {', '.join(words)}")
    return said


def group_folds(values: list[str], *, what: str = "fold") -> list[Split]:
    """One split a fold: test = fold k, valid = fold k + 1 (cyclic), train = the rest.

    Source: HEAR (Turian et al. 2022) chooses on the next fold; choosing on the test fold, as
    several published evaluations do, inflates the score.

    Raises:
        ValueError: for fewer than three folds.
    """
    names = sorted(set(values), key=_natural)
    if len(names) < 3:
        raise ValueError(
            f"folds need at least 3 different values (test, valid, train), got {names}"
        )
    numbers = [float(name) for name in names if re.fullmatch(r"\d+(\.\d*)?", name)]
    if what == "fold" and len(set(numbers)) < len(numbers):
        raise ValueError(f"some folds have one number written in two ways: {', '.join(names)}")
    column = np.array(values)
    return [
        Split(
            name=f"{what} {name}",
            train=np.flatnonzero((column != name) & (column != following)),
            valid=np.flatnonzero(column == following),
            test=np.flatnonzero(column == name),
        )
        for name, following in zip(names, [*names[1:], names[0]], strict=True)
    ]


def leave_one_out(values: list[str]) -> list[Split]:
    """One split a value (speaker, session): it is tested on, the next one (cyclic) is valid."""
    return group_folds(values, what="left out")


def hold_out(
    clips: Sequence[str],
    labels: Sequence[str],
    *,
    groups: Sequence[str] | None = None,
    fraction: float = HELD_OUT,
    rows: Iterable[int] | None = None,
) -> NDArray[np.bool_]:
    """Which clips to hold out for validation; a function of their names, not of their order.

    Args:
        clips: names; their hashes make the choice.
        labels: every class gives its `fraction`, but keeps at least one clip for training. Where
            that comes to under half of what is wanted, as of classes with three clips each, those
            that gave none give one, until the fraction of all clips is reached.
        groups: clips of one group (a speaker) go together; the classes are then balanced as far
            as whole groups allow.
        fraction: of the clips.
        rows: of the clips that there are to choose from; None for all.

    Returns:
        (n,) True where held out, of the rows.

    Raises:
        ValueError: if there are fewer than two groups.
    """
    if rows is not None:
        rows = list(rows)
        clips, labels = [clips[i] for i in rows], [labels[i] for i in rows]
        groups = None if groups is None else [groups[i] for i in rows]
    if groups is not None:
        return _hold_out_groups(labels, groups, fraction=fraction)
    held = np.zeros(len(clips), dtype=bool)
    by_class: dict[str, list[int]] = defaultdict(list)
    for index in sorted(range(len(clips)), key=lambda i: name_hash(clips[i])):
        by_class[labels[index]].append(index)
    for members in by_class.values():
        held[members[: min(round(fraction * len(members)), len(members) - 1)]] = True
    wanted = max(1, round(fraction * len(clips)))
    if held.sum() < wanted / 2:  # most classes are too small to give a whole clip: one of each
        spare = [members[0] for members in by_class.values() if len(members) > 1]
        spare = [clip for clip in spare if not held[clip]]
        held[spare[: wanted - int(held.sum())]] = True
    return held


def _hold_out_groups(
    labels: Sequence[str], groups: Sequence[str], *, fraction: float
) -> NDArray[np.bool_]:
    names = sorted(set(groups), key=name_hash)
    if len(names) < 2:
        raise ValueError(f"holding out whole groups needs at least 2 of them, got {names}")
    row, column = ({name: i for i, name in enumerate(own)} for own in (names, sorted(set(labels))))
    counts = np.zeros((len(names), len(column)))
    for label, group in zip(labels, groups, strict=True):
        counts[row[group], column[label]] += 1
    total = counts.sum(axis=0)
    wanted, taken = fraction * total, np.zeros(len(column))
    chosen = np.zeros(len(names), dtype=bool)
    while chosen.sum() < len(names) - 1:
        # The group that brings the class counts nearest to what is wanted; stop when none helps.
        # One that holds the last clips of a class would leave it untrained.
        free = np.flatnonzero(~chosen)
        safe = free[~(taken + counts[free] == total).any(axis=1)]
        if not len(safe) and chosen.any():
            break
        safe = safe if len(safe) else free
        distance = np.abs(wanted - taken - counts[safe]).sum(axis=1)
        best = int(distance.argmin())
        if chosen.any() and distance[best] >= np.abs(wanted - taken).sum():
            break
        chosen[safe[best]] = True
        taken += counts[safe[best]]
    return np.array([chosen[row[group]] for group in groups])


def name_hash(text: str) -> bytes:
    """What orders names in a way that neither their list nor the alphabet decides."""
    return hashlib.sha256(text.encode()).digest()


def _natural(text: str) -> list[tuple[int, int, str]]:
    """Sort key that puts fold 10 after fold 9."""
    return [
        (0, int(part), "") if part.isdecimal() else (1, 0, part)
        for part in re.split(r"(\d+)", text)
        if part
    ]


def label_set(text: str, separator: str) -> tuple[str, ...]:
    """The labels in one cell of a table, each once; without a separator the cell is the label.

    >>> label_set("dog; rain;dog", ";")
    ('dog', 'rain')
    """
    if not separator:
        return (text,)
    return tuple(dict.fromkeys(filter(None, (word.strip() for word in text.split(separator)))))


def few_names(names: Sequence[str], *, between: str = ", ") -> str:
    """The first five names, and how many more there are.

    >>> few_names(list("abcdefg"))
    'a, b, c, d, e and 2 more'
    """
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return between.join(names[:5]) + more


def look_alikes(names: Iterable[str]) -> list[list[str]]:
    """Names that differ in case, spaces, dashes, Unicode form or the writing of a number alone.

    >>> look_alikes(["dog", "Dog ", "1", "cat", "1.0", "d\u200bog", "sea_lion", "sea lion"])
    [['1', '1.0'], ['Dog ', 'dog', 'd\u200bog'], ['sea lion', 'sea_lion']]
    """
    groups: dict[str, list[str]] = defaultdict(list)
    for name in sorted(set(names)):
        groups[_without_spelling(name)].append(name)
    return sorted(group for group in groups.values() if len(group) > 1)


_PLAIN = {"Pd": "-", "Pi": "'", "Pf": "'"}  # category of Unicode -> what it is typed as


def _without_spelling(name: str) -> str:
    """A name without case, unseen marks and the form of its characters; a number as a float."""
    text = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())
    text = "".join(c for c in text if unicodedata.category(c) != "Cf")  # U+200B, U+FEFF
    text = "".join(_PLAIN.get(unicodedata.category(c), c) for c in text).rstrip(".")
    text = re.sub(r"(?<=[^\W\d_])-(?=[^\W\d_])", " ", text)  # sea-lion, but -1 is not 1
    text = " ".join(text.replace("_", " ").split())
    return str(float(text)) if re.fullmatch(r"[+-]?\d+(\.\d*)?", text) else text


def rarest_labels(labels: list[str], separator: str) -> list[str]:
    """Of each clip the label that the fewest clips have: strata that no rare class is missed in."""
    sets = [label_set(text, separator) for text in labels]
    counts = Counter(label for names in sets for label in names)
    return [min(names, key=lambda name: (counts[name], name), default="") for names in sets]
