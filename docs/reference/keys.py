"""Write the tables of keys in commands.md from the settings: python docs/reference/keys.py."""

import importlib
import re
import typing
from pathlib import Path

from ssmast.settings import Key, flat_fields, to_word

PAGE = Path(__file__).parent / "commands.md"
_PART = re.compile(r"<!-- keys of (\S+) -->\n.*?<!-- end of keys -->", re.S)


def filled(text: str) -> str:
    """The page with the tables as the settings are now."""
    return _PART.sub(
        lambda part: f"<!-- keys of {part[1]} -->\n{tables(part[1])}<!-- end of keys -->", text
    )


def tables(name: str) -> str:
    """The keys of a settings class, a table for each section.

    Args:
        name: module.Class.
    """
    module, _, kind = name.rpartition(".")
    schema = getattr(importlib.import_module(module), kind)
    hints, sections = typing.get_type_hints(schema), {}
    for key, found in flat_fields(schema).items():
        sections.setdefault(key.rpartition(".")[0], []).append((key, found))
    parts = []
    for section in sorted(sections, key=lambda section: section != ""):
        if section:
            about = (hints[section].__doc__ or "").splitlines()[0]
            parts.append(f"\n**`{section}.` {about}**\n")
        parts.append("\n| key | default | meaning |\n| --- | --- | --- |\n")
        parts += [_row(key, found) for key, found in sections[section]]
    return "".join(parts) + "\n"


def _row(name: str, key: Key) -> str:
    default = "required" if key.required else f"`{to_word(key.default)}`"
    if key.default in ("", []) and not key.required:
        default = ""
    wanted = f" ({key.wanted})" if key.wanted else ""
    meaning = f"{key.help}{wanted}".replace("|", "\\|").replace("<", "&lt;")
    return f"| `{name}` | {default} | {meaning} |\n"


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
