"""What to score on: the text a user writes, and what it means.

`fsdd`, `speech:label=speaker,split=split_speaker`, `fsdd:protocol=leave_one_out:speaker`.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

OPTIONS = ("label", "split", "fold", "protocol", "group", "multi_label", "separator")
# What a task.json may decide; whether a clip has several labels belongs to its label column.
_FROM_FILE = OPTIONS[:5]


@dataclass(frozen=True, kw_only=True)
class TaskSpec:
    """What to learn from which columns of which labelled set.

    Attributes:
        name: folder of the set.
        label: column with the classes.
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
            f"{key}={getattr(self, key)}"
            for key in OPTIONS
            if getattr(self, key) != getattr(defaults, key)
        )
        return f"{self.name}:{options}" if options else self.name


def filled(spec: TaskSpec, facts: Mapping[str, Any]) -> TaskSpec:
    """The spec with what the user left open taken from the task.json of the set.

    Args:
        spec: as asked for.
        facts: from `read_task_file`.

    >>> filled(TaskSpec(name="a"), {"label": "class", "protocol": "folds"}).label
    'class'
    """
    usual = TaskSpec(name=spec.name)
    left_open = [key for key in _FROM_FILE if getattr(spec, key) == getattr(usual, key)]
    if not {"split", "fold"} <= set(left_open) and "protocol" in left_open:
        left_open.remove("protocol")  # another column was asked for: it decides
    return replace(spec, **{key: str(facts[key]) for key in left_open if facts.get(key)})


def split_names(text: str) -> list[str]:
    """Task specs in `[a,b:label=speaker,split=c]`, `a,b` or `a`.

    >>> split_names("[a, b:label=speaker,split=c, d]")
    ['a', 'b:label=speaker,split=c', 'd']
    """
    text = text.strip()
    if text.startswith("[") and text.endswith("]"):
        text = text[1:-1]
    names: list[str] = []
    for word in (word.strip().strip("'\"") for word in text.split(",")):
        # A word such as `split=c` belongs to the task before it.
        if names and re.match(rf"({'|'.join(OPTIONS)})=", word):
            names[-1] += "," + word
        elif word:
            names.append(word)
    return names


def parse_task(text: str) -> TaskSpec:
    """A task from `name` or `name:key=value,key=value`.

    Raises:
        ValueError: if a key is unknown or the name is missing.
    """
    name, _, rest = text.partition(":")
    if not name:
        raise ValueError(f"a task needs the name of a labelled set before ':', got {text!r}")
    options: dict[str, str] = {}
    for word in filter(None, rest.split(",")):
        key, equals, value = word.partition("=")
        if key not in OPTIONS or not equals:
            raise ValueError(
                f"task {text!r}: after ':' come key=value pairs with the keys "
                f"{', '.join(OPTIONS)}, got {word!r}"
            )
        if key == "multi_label" and value not in ("true", "false"):
            raise ValueError(f"task {text!r}: multi_label must be true or false, got {value!r}")
        if key == "separator" and not value:
            raise ValueError(f"task {text!r}: separator must not be empty")
        options[key] = value
    return TaskSpec(name=name, **options)
