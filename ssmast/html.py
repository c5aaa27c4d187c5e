"""HTML pages: escaped text, sections, tables, pictures, the document; and tables in Markdown."""

import base64
import hashlib
import html
import json
import re
from collections.abc import Iterable, Sequence
from importlib import resources
from typing import Any

from ssmast.settings import flatten

PAGE_BEGINS = "<!doctype html"
"""How a page begins, by which `check_output` knows one."""


def text(value: object) -> str:
    """Anything as escaped text."""
    if isinstance(value, float):
        value = f"{value:.6g}"
    return html.escape(value if isinstance(value, str) else json.dumps(value, default=str))


def section(title: str, *parts: str) -> str:
    """A heading and what is below it; nothing where there is nothing below."""
    body = "\n".join(part for part in parts if part)
    name = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")
    return f'<section id="{name}"><h2>{text(title)}</h2>\n{body}\n</section>' if body else ""


def details(title: str, body: str, *, is_open: bool = False) -> str:
    """A part that opens on a click; nothing where there is nothing inside."""
    state = " open" if is_open else ""
    return f"<details{state}><summary>{text(title)}</summary>{body}</details>" if body else ""


def table(
    rows: Iterable[Sequence[object]],
    *,
    head: Sequence[object] = (),
    first_is_head: bool = False,
    name: str = "",
    style: str = "",
) -> str:
    """A table that scrolls sideways where it is wider than the page; nothing without a row.

    Args:
        rows: cells of each, escaped here.
        head: cells of the first row.
        first_is_head: the first cell of every row names it.
        name: for screen readers.
        style: class of the table.
    """
    lines = [_table_row(head, "th", "th")] if head else []
    body = [_table_row(row, "th" if first_is_head else "td", "td") for row in rows]
    if not body:
        return ""
    kind = f' class="{style}"' if style else ""
    label = f' role="region" aria-label="{text(name)}"' if name else ""
    return (
        f'<div class="wide" tabindex="0"{label}><table{kind}>{"".join(lines + body)}</table></div>'
    )


def markdown_table(
    head: Sequence[object], rows: Iterable[Sequence[object]], *, numbers: int = 0
) -> str:
    """A Markdown table whose last `numbers` columns are set to the right."""
    rules = ["---"] * (len(head) - numbers) + ["---:"] * numbers
    return "".join(
        f"| {' | '.join(map(_markdown_cell, line))} |\n" for line in (head, rules, *rows)
    )


def _markdown_cell(value: object) -> str:
    return " ".join(str(value).replace("|", "\\|").splitlines())


def key_table(values: dict[str, Any]) -> str:
    """Nested settings as rows of dotted key and value."""
    return table(flatten(values).items(), first_is_head=True)


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
    named = re.findall(r'<section id="([^"]*)"><h2>(.*?)</h2>', "".join(sections))
    links = " ".join(f'<a href="#{name}">{heading}</a>' for name, heading in named)
    contents = f'<nav aria-label="Contents">{links}</nav>\n' if len(named) > 3 else ""
    return (
        f'{PAGE_BEGINS}>\n<html lang="en"><head><meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{text(title)}</title>\n<style>{_style()}</style></head>\n<body>\n"
        f"<h1>{text(title)}</h1>\n{contents}"
        + "\n".join(filter(None, sections))
        + f"\n{code}</body></html>\n"
    )


def _table_row(cells: Sequence[object], first: str, other: str) -> str:
    tags = [first] + [other] * (len(cells) - 1)
    return (
        "<tr>"
        + "".join(f"<{tag}>{text(c)}</{tag}>" for tag, c in zip(tags, cells, strict=True))
        + "</tr>"
    )


def _style() -> str:
    return resources.files("ssmast").joinpath("page.css").read_text(encoding="utf-8")


def _sha256(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
