"""The page about a prepared corpus: hours, lengths, rates, loudness, and what was left out."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ssmast.files import write_atomic
from ssmast.html import details, key_table, page, section, table, text, tiles

_EXAMPLES = 20  # rejected clips shown of each kind
_BARS = 24


def write_page(out: Path) -> Path:
    """Write `report.html` into a prepared corpus; the same corpus gives the same page.

    Returns:
        Path of the page.
    """
    about = json.loads((out / "corpus.json").read_text(encoding="utf-8"))
    columns = ["samples", "rate", "source_rate", "decoder", "rms"]
    manifest = pq.read_table(out / "manifest.parquet", columns=columns)
    seconds = manifest["samples"].to_numpy() / manifest["rate"].to_numpy()
    loudness = 20 * np.log10(np.maximum(manifest["rms"].to_numpy(), 1e-6))
    html = page(
        "Prepared corpus",
        tiles(
            {
                "hours": f"{about['seconds'] / 3600:.2f}",
                "clips": f"{about['clips']:,}",
                "source clips": f"{about['source_clips']:,}",
                "shards": f"{about['shards']:,}",
                "MB": f"{about['bytes'] / 2**20:,.1f}",
                "log-mel mean": f"{about['mean']:.3f}",
                "log-mel std": f"{about['std']:.3f}",
            }
        ),
        section(
            "Clips",
            '<div class="curves">',
            _histogram(seconds, "length in seconds"),
            _histogram(loudness, "loudness, RMS in dB of full scale"),
            "</div>",
        ),
        section("Rates of the source in Hz", _counts(manifest["source_rate"])),
        section("Decoders", _counts(manifest["decoder"])),
        section("Left out", _rejected(out / "rejected.csv")),
        section("Settings", details("all", key_table(about["settings"]))),
    )
    path = out / "report.html"
    write_atomic(path, html)
    return path


def _histogram(values: np.ndarray, title: str) -> str:
    """Bars of counts as an SVG with its range and the highest count written out."""
    low, high = float(values.min()), float(values.max())
    if high - low < 1e-6:
        low, high = low - 0.5, high + 0.5
    counts, _ = np.histogram(values, bins=_BARS, range=(low, high))
    top = max(int(counts.max()), 1)
    bars = "".join(
        f'<rect x="{10 * i + 1}" y="{80 - 76 * count / top:.1f}" width="8" '
        f'height="{76 * count / top:.1f}" fill="var(--accent)"/>'
        for i, count in enumerate(counts.tolist())
    )
    return (
        f"<figure><figcaption>{text(title)}: median {np.median(values):.3g}, "
        f"tallest bar {top:,}</figcaption>"
        f'<svg viewBox="0 0 {10 * _BARS} 94" role="img"><line x1="0" y1="80" x2="{10 * _BARS}" '
        f'y2="80" stroke="var(--line)"/>{bars}'
        f'<text x="0" y="92" font-size="9" fill="currentColor">{low:.3g}</text>'
        f'<text x="{10 * _BARS}" y="92" font-size="9" fill="currentColor" '
        f'text-anchor="end">{high:.3g}</text></svg></figure>'
    )


def _counts(column: pa.ChunkedArray) -> str:
    """Rows of a value and its number of clips, the most frequent first."""
    found: list[dict[str, Any]] = column.value_counts().to_pylist()
    found.sort(key=lambda row: (-row["counts"], str(row["values"])))
    return table([(str(row["values"]), f"{row['counts']:,}") for row in found], head=("", "clips"))


def _rejected(path: Path) -> str:
    """Each kind with its count, and some of its clips."""
    kinds: dict[str, list[str]] = {}
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            kinds.setdefault(row["kind"], []).append(row["reason"])
    if not kinds:
        return "<p>Nothing.</p>"
    parts = []
    for kind, reasons in sorted(kinds.items()):
        items = "".join(f"<li>{text(reason)}</li>" for reason in reasons[:_EXAMPLES])
        more = len(reasons) - _EXAMPLES
        rest = f"<p class='soft'>and {more:,} more in {text(path.name)}</p>" if more > 0 else ""
        parts.append(details(f"{kind}: {len(reasons):,}", f"<ul>{items}</ul>{rest}"))
    return "".join(parts)
