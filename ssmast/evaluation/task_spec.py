"""A task: which columns of a labelled set are learnt, and how it is written.

`fsdd`, `speech:label=speaker,split=split_speaker`, `fsdd:protocol=leave_one_out:speaker`,
`events:multi_label=true` where the label column holds several labels a clip, `dog;rain`.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

TASK_KEYS = ("label", "split", "fold", "protocol", "group", "multi_label", "separator")
# What a task.json may decide; whether a clip has several labels belongs to its label column.
_FROM_FILE = TASK_KEYS[:5]


@dataclass(frozen=True, kw_only=True)
class TaskSpec:
    """What to learn from which columns of which labelled set.

    Attributes:
        name: folder of the set.
        label: column with the classes, or a pattern whose first brackets take them of the paths.
        split: column of train, valid, test.
        fold: column of folds, used when the split column is empty or `protocol` is "folds".
        protocol: "auto", "split", "folds" or "leave_one_out:COLUMN".
        group: column that validation clips held out of the training part must not share with
            it, such as the speaker; empty for none.
        multi_label: "true" where the label column holds several, "false" where it does not; empty
            for what the task.json of the set says of that column.
        separator: between the labels of a clip.
    """

    name: str
    label: str = "label"
    split: str = "split"
    fold: str = "fold"
    protocol: str = "auto"
    group: str = ""
    multi_label: str = ""
    separator: str = ";"

    def __str__(self) -> str:
        """The spec as text, only what differs from the defaults; `parse_task` reads it back."""
        defaults = TaskSpec(name=self.name)
        options = ",".join(
            f"{key}={quoted(value) if key != 'protocol' or ',' in value else value}"
            for key in TASK_KEYS
            if (value := getattr(self, key)) != getattr(defaults, key)
        )
        return f"{quoted(self.name)}:{options}" if options else quoted(self.name)


def filled(spec: TaskSpec, facts: Mapping[str, Any]) -> TaskSpec:
    """The spec with what the user left open taken from the task.json of the set.

    >>> filled(TaskSpec(name="a"), {"label": "class", "protocol": "folds"}).label
    'class'
    """
    usual = TaskSpec(name=spec.name)
    left_open = [key for key in _FROM_FILE if getattr(spec, key) == getattr(usual, key)]
    if not {"split", "fold"} <= set(left_open) and "protocol" in left_open:
        left_open.remove("protocol")  # another column was asked for: it decides
    return replace(spec, **{key: str(facts[key]) for key in left_open if facts.get(key)})


def split_names(text: str) -> list[str]:
    """Task names in `[a,b:label=speaker,split=c]`, `a,b` or `a`; `'a,b'` is one.

    >>> split_names("[a, b:label=speaker,split=c, d]")
    ['a', 'b:label=speaker,split=c', 'd']
    """
    text = text.strip()
    if text.startswith("[") and text.endswith("]"):
        text = text[1:-1]
    names: list[str] = []
    for word in map(unquoted, split_words(text)):
        # A word such as `split=c` belongs to the task before it.
        if names and re.match(rf"({'|'.join(TASK_KEYS)})=", word):
            names[-1] += "," + word
        elif word:
            names.append(word)
    return names


def parse_task(text: str) -> TaskSpec:
    """A task from `name` or `name:key=value,key=value`; in quotes, all marks are letters.

    >>> str(parse_task("'a, b':label='x:y'"))
    "'a, b':label='x:y'"

    Raises:
        ValueError: if a key is unknown or the name is missing.
    """
    name, *rest = split_words(text, ":")
    name = unquoted(name)
    if not name:
        raise ValueError(f"a task needs the name of a labelled set before ':', got {text!r}")
    options: dict[str, str] = {}
    for word in filter(None, split_words(":".join(rest))):
        key, equals, value = word.partition("=")
        value = unquoted(value)
        if key not in TASK_KEYS or not equals:
            raise ValueError(
                f"task {text!r}: after ':' come key=value pairs with the keys "
                f"{', '.join(TASK_KEYS)}, got {word!r}"
            )
        if key == "multi_label" and value not in ("true", "false"):
            raise ValueError(f"task {text!r}: multi_label must be true or false, got {value!r}")
        if key == "separator" and not value:
            raise ValueError(f"task {text!r}: separator must not be empty")
        options[key] = value
    return TaskSpec(name=name, **options)


def split_words(text: str, mark: str = ",") -> list[str]:
    """Words between marks, without the space around them; inside quotes a mark is a letter.

    A quote opens at the beginning of a word or of a value, after `=` or `:`, and is doubled inside.

    >>> split_words("a, 'b, it''s':label='x,y',don't")
    ['a', "'b, it''s':label='x,y'", "don't"]
    """
    words, start, quote = [], 0, ""
    for i, c in enumerate(text):
        if quote:
            quote = "" if c == quote else quote
        elif c in "'\"" and (not text[start:i].strip() or text[i - 1] in "=:'\""):
            quote = c
        elif c == mark:
            words.append(text[start:i].strip())
            start = i + 1
    return [*words, text[start:].strip()]


def unquoted(word: str) -> str:
    """The word inside its quotes, if it has them all around it; else the word.

    >>> unquoted("'it''s'"), unquoted("'a':b='c'")
    ("it's", "'a':b='c'")
    """
    for quote in "'\"":
        inner = word[1:-1].replace(2 * quote, "")
        if len(word) > 1 and word[0] == word[-1] == quote and quote not in inner:
            return word[1:-1].replace(2 * quote, quote)
    return word


def quoted(word: str) -> str:
    """A word that `split_words` keeps whole: in quotes if it holds a mark of the syntax."""
    if word == word.strip() and not re.search(r"[,:=\[\]'\"]", word):
        return word
    return "'" + word.replace("'", "''") + "'"
