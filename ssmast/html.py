"""Pieces of a page: escaped text, sections, tables, and the document around them."""

import base64
import hashlib
import html
import json
from collections.abc import Sequence
from importlib import resources
from typing import Any


def text(value: object) -> str:
    """Anything as escaped text."""
    if isinstance(value, float):
        value = f"{value:.6g}"
    return html.escape(value if isinstance(value, str) else json.dumps(value, default=str))


def section(title: str, *parts: str) -> str:
    """A heading and what is below it; nothing where there is nothing below."""
    body = "\n".join(part for part in parts if part)
    return f"<section><h2>{text(title)}</h2>\n{body}\n</section>" if body else ""


def details(title: str, body: str, *, is_open: bool = False) -> str:
    """A part that opens on a click; nothing where there is nothing inside."""
    state = " open" if is_open else ""
    return f"<details{state}><summary>{text(title)}</summary>{body}</details>" if body else ""


def key_table(values: dict[str, Any]) -> str:
    """Nested settings as rows of dotted key and value."""
    rows = "".join(
        f"<tr><th>{text(key)}</th><td>{text(value)}</td></tr>" for key, value in _flat(values)
    )
    return f'<div class="wide"><table>{rows}</table></div>' if rows else ""


def tiles(values: dict[str, str]) -> str:
    """A few numbers in large print."""
    boxes = "".join(
        f'<div class="tile"><span class="soft">{text(name)}</span><b>{text(value)}</b></div>'
        for name, value in values.items()
    )
    return f'<div class="tiles">{boxes}</div>' if boxes else ""


def picture(png: bytes, name: str) -> str:
    """A PNG inside the page itself, as wide as the page."""
    data = base64.b64encode(png).decode("ascii")
    return f'<img alt="{text(name)}" style="width:100%" src="data:image/png;base64,{data}">'


def page(title: str, *sections: str, scripts: Sequence[str] = ()) -> str:
    """The whole document; it loads nothing but sound files that lie beside it.

    Args:
        title: of the page.
        sections: its body.
        scripts: JavaScript to run. The page allows no other: what a file name may smuggle in
            would not run even if it were not escaped.
    """
    hashes = " ".join(f"'sha256-{_sha256(script)}'" for script in scripts) or "'none'"
    policy = (
        f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data:; "
        "media-src 'self' file: data:; base-uri 'none'; form-action 'none'"
    )
    code = "".join(f"<script>{script}</script>\n" for script in scripts)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{text(title)}</title>\n<style>{asset('report.css')}</style></head>\n<body>\n"
        f"<h1>{text(title)}</h1>\n"
        + "\n".join(filter(None, sections))
        + f"\n{code}</body></html>\n"
    )


def asset(name: str) -> str:
    """A file of this package as text."""
    return resources.files("ssmast.report").joinpath(name).read_text(encoding="utf-8")


def _sha256(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")


def _flat(values: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    flat: list[tuple[str, Any]] = []
    for key, value in values.items():
        if isinstance(value, dict):
            flat += _flat(value, f"{prefix}{key}.")
        else:
            flat.append((f"{prefix}{key}", value))
    return flat
