"""Labels of clips that may have several."""

from collections import Counter


def label_set(text: str, separator: str) -> tuple[str, ...]:
    """The labels in one cell of a table, each once; without a separator the cell is the label.

    >>> label_set("dog; rain;dog", ";")
    ('dog', 'rain')
    """
    if not separator:
        return (text,)
    return tuple(dict.fromkeys(filter(None, (word.strip() for word in text.split(separator)))))


def rarest_labels(labels: list[str], separator: str) -> list[str]:
    """Of each clip the label that the fewest clips have: strata that no rare class is missed in."""
    sets = [label_set(text, separator) for text in labels]
    counts = Counter(label for names in sets for label in names)
    return [min(names, key=lambda name: (counts[name], name), default="") for names in sets]
