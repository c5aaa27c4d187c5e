"""Draw the figures of README and docs: python docs/figures [out=DIR] [only=NAME]."""

import sys
from pathlib import Path

from inside import attention, patch_drop, pooling
from method import method
from outside import order, queue
from paper import save, style
from probing import probe

FIGURES = {
    "method": method,
    "attention": attention,
    "patch_drop": patch_drop,
    "queue": queue,
    "order": order,
    "probe": probe,
    "pooling": pooling,
}


def main(words: list[str]) -> int:
    """Draw them all, or one."""
    given = dict(word.split("=", 1) for word in words)
    out = Path(given.get("out", Path(__file__).parents[1] / "images"))
    for name, draw in FIGURES.items():
        if given.get("only", name) == name:
            with style():
                save(draw(), out / f"{name}.svg")
            sys.stdout.write(f"{out / name}.svg\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
