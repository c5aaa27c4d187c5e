"""Write one HTML page about runs and results: settings, data, curves, alarms, scores, clusters.

    ssmast report runs/mine                          config, curves, bad files, scores, clusters
    ssmast report runs/mine runs/earlier             the same, with an earlier run beside it
    ssmast report runs/mine/probe out=scores.html    results alone: folders or JSON files

The page is about the first run or result; the others are shown for comparison. It is one file that
loads nothing: sounds of a cluster map are put inside up to `audio_mb`, others are linked relative
to the page. It works for a run in progress too.
"""

import logging
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path
from typing import Any

from ssmast.evaluation.results import Result
from ssmast.files import check_output, write_atomic
from ssmast.html import PAGE_BEGINS, page, section, tiles
from ssmast.report.clusters_map import clusters, scatter
from ssmast.report.run_sections import about, headline, learnt, left_out, reproduce, views
from ssmast.report.scores import paper_tables, scores
from ssmast.report.sources import Source, read_results, read_sources, run_source
from ssmast.settings import Settings, UsageError, in_home, named_files, parse, setting

__all__ = ["ReportConfig", "main", "read_probes", "write_map", "write_report"]

logger = logging.getLogger(__name__)

_MEGABYTE = 1_000_000


@dataclass(frozen=True, kw_only=True)
class ReportConfig(Settings):
    """`ssmast report`: runs and results to one HTML page."""

    run: str = setting("", "run folder; words without a key are run folders and result folders")
    results: str = setting("", "folder of results, in place of the run's own")
    out: str = setting("", "page to write; empty: report.html in the first folder")
    audio_mb: float = setting(
        6.0, "most MB of sound put inside the page; 0: only links", range="[0, inf)"
    )
    audio_seconds: float = setting(
        5.0, "seconds of each clip put inside the page", range="(0, inf)"
    )


def main(argv: list[str]) -> int:
    """`ssmast report`: parse, then write the page."""
    named = named_files(argv, ReportConfig)
    words = [word for word in argv if word not in named]
    config = parse(ReportConfig, words, command="ssmast report", description=__doc__ or "")
    if config is None:
        return 0
    for key, folder in (("run", config.run), ("results", config.results)):
        if folder and not Path(folder).exists():
            raise FileNotFoundError(f"there is no folder at {key}={folder}")
    if not (named or config.run or config.results):
        raise UsageError("name a run or results, such as `ssmast report runs/mine`")
    paths = [Path(in_home(word)) for word in ([config.run] if config.run else []) + named]
    first = (paths or [Path(config.results)])[0]
    out = Path(config.out or (first if first.is_dir() else first.parent) / "report.html")
    check_output(out, begins=PAGE_BEGINS)
    sources = read_sources(paths)
    if config.results:
        sources = _with_results(sources, Path(config.results))
    _write(
        out,
        sources,
        command=["ssmast", "report", *argv],
        audio_bytes=round(config.audio_mb * _MEGABYTE),
        audio_seconds=config.audio_seconds,
    )
    logger.info("report: %s (%.1f MB)", out, out.stat().st_size / _MEGABYTE)
    return 0


def write_report(
    out: str | Path,
    *,
    run: str | Path | None = None,
    results: list[Result] | None = None,
    title: str = "",
    commands: list[str] | None = None,
) -> Path:
    """Write the page of one run or of results; whatever is missing is left out of it.

    `results` are what `run_suite` returned, by default what lies in probe/ of the run folder;
    `commands` repeat it, and are by default derived from the settings.
    """
    source = run_source(None if run is None else Path(run), results)
    return _write(Path(out), [source], title=title, commands=commands)


def write_map(
    out: Path, picture: dict[str, Any], *, title: str, audio_mb: float, audio_seconds: float
) -> None:
    """Write the page of one picture of clips, which can be played."""
    drawn = scatter(picture, title, 0, out, round(audio_mb * _MEGABYTE), audio_seconds)
    content = page(title, section("Map", drawn), scripts=(_bokeh(), _script()))
    write_atomic(out, content)


def read_probes(folder: Path) -> list[Result]:
    """The results of `ssmast probe` (*.json) in a folder, by name."""
    return [result for result in read_results(folder) if isinstance(result, Result)]


def _with_results(sources: list[Source], folder: Path) -> list[Source]:
    """Results named by results=, in place of those that lie in the run folder."""
    found = read_sources([folder])
    if not sources:
        return found
    first, clustered = sources[0], [result for source in found for result in source.clusters]
    first.probes = [result for source in found for result in source.probes]
    first.clusters = clustered or first.clusters
    return sources


def _write(
    out: Path,
    sources: list[Source],
    *,
    title: str = "",
    commands: list[str] | None = None,
    command: list[str] | None = None,
    audio_bytes: int = 6 * _MEGABYTE,
    audio_seconds: float = 5.0,
) -> Path:
    subject = sources[0]
    title = title or (f"Run {subject.name}" if subject.run is not None else "Scores")
    clusters_part, has_scatter = clusters(
        sources, page=out, audio_bytes=audio_bytes, audio_seconds=audio_seconds
    )
    content = page(
        title,
        f'<p class="soft">written {datetime.now(UTC):%Y-%m-%d %H:%M} UTC</p>',
        tiles(headline(subject)),
        about(subject),
        scores(sources),
        paper_tables(sources),
        section("Did it learn?", *learnt(sources)),
        clusters_part,
        section("What the networks are fed", views(subject)),
        section("Clips left out", left_out(subject)),
        section("Reproduce", reproduce(subject, commands, command)),
        scripts=(_bokeh(), _script()) if has_scatter else (),
    )
    write_atomic(out, content)
    return out


def _script() -> str:
    return resources.files("ssmast.report").joinpath("report.js").read_text(encoding="utf-8")


def _bokeh() -> str:
    """Bokeh's script, from its wheel."""
    from bokeh.resources import Resources

    script = Resources(mode="inline", components=["bokeh"]).js_raw[0]
    assert "</script" not in script.lower()
    return script
