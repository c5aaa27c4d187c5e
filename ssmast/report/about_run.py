"""What the page says of a run: what was trained on what, its curves and views, how to repeat it."""

import shlex
from collections import Counter
from collections.abc import Sequence
from typing import Any

from ssmast.evaluation.results import TITLES, columns_of
from ssmast.html import details, key_table, picture, section, text
from ssmast.report.curves import MOST_RUNS, curves
from ssmast.report.sources import Source


def headline(source: Source) -> dict[str, str]:
    """The few numbers in large print."""
    shown: dict[str, str] = {}
    metrics = source.read_metrics()
    if metrics:
        last = {key: value for row in metrics for key, value in row.items()}  # the last of each
        shown["steps"] = str(last.get("step", ""))
        for key, name in (("loss", "loss"), ("rank_embedding", "effective rank")):
            if isinstance(last.get(key), int | float):
                shown[name] = f"{last[key]:.3g}"
    names = {name for result in source.probes for name in columns_of(result)}
    for name in (name for name in TITLES if name in names):
        means = [columns_of(r)[name]["mean"] for r in source.probes if name in columns_of(r)]
        shown[f"{TITLES[name]}, mean of {len(means)}"] = f"{100 * sum(means) / len(means):.1f} %"
    return shown


OBJECTIVES = {"ss_mast": "SS-MAST", "ssast": "SSAST"}
"""What to call the package's own objectives; any other goes by the name of its class."""


def about(source: Source) -> str:
    """What was trained on what: one sentence, then every setting."""
    config, facts = source.read_mapping("config.yaml"), source.read_mapping("facts.json")
    start = source.read_mapping("init.json")
    parts = [f"<p>{text(_sentence(config, facts))}</p>" if config else ""]
    if start.get("source") or config.get("init"):
        origin = str(start.get("source") or config["init"])
        origin = "random weights" if origin == "none" else origin
        parts.append(f"<p>It began from {text(origin)}.</p>")
    parts.append(key_table(facts))
    parts.append(details("All settings", key_table(config)))
    return section("What was trained on what", *parts)


def _sentence(config: dict[str, Any], facts: dict[str, Any]) -> str:
    network = config.get("model") or "an encoder"
    clips = f"{facts['clips']:,} clips of " if "clips" in facts else ""
    data = facts.get("data") or config.get("data") or "the built-in synthetic corpus"
    objective = str(config.get("objective") or "")
    method = f" by {OBJECTIVES.get(objective, objective)}" if objective else ""
    text = f"{network}, trained{method} on {clips}{data}"
    if config.get("steps") and config.get("batch_size"):
        text += f" for {config['steps']:,} steps of {config['batch_size']:,} clips"
    return text + (f", seed {config['seed']}." if "seed" in config else ".")


def learnt(sources: Sequence[Source]) -> list[str]:
    """Alarms and curves of the first run that has them, the other runs' beside."""
    logged = [(source, rows) for source in sources if (rows := source.read_metrics())]
    if not logged:
        return []
    (_, rows), others = logged[0], logged[1:MOST_RUNS]
    pictures = curves(rows, others=[other for _, other in others])
    main = "".join(_figure(name, svg) for name, svg, is_main in pictures if is_main)
    more = "".join(_figure(name, svg) for name, svg, is_main in pictures if not is_main)
    key = "".join(
        f'<span class="{colour}"><b>\u2501</b> {text(source.name)}</span>'
        for colour, (source, _) in zip(("c0", "c3", "c4", "c5"), logged, strict=False)
    )
    return [
        *(_alarms(rows, "" if len(sources) < 2 else source.name) for source, rows in logged),
        f'<p class="key">{key}</p>' if others else "",
        f'<div class="curves">{main}</div>' if main else "",
        details("More curves", f'<div class="curves">{more}</div>' if more else ""),
    ]


def _figure(name: str, svg: str) -> str:
    return f"<figure><figcaption>{text(name)}</figcaption>{svg}</figure>"


def _alarms(metrics: list[dict[str, Any]], name: str) -> str:
    """What the alarm said, and at which steps."""
    heard: dict[str, list[Any]] = {}
    last: dict[str, str] = {}
    for row in metrics:
        alarms = row.get("alarms")
        for kind, sentence in (alarms if isinstance(alarms, dict) else {}).items():
            heard.setdefault(kind, []).append(row.get("step"))
            last[kind] = str(sentence)
    items = "".join(
        f"<li><b>{text(kind.replace('_', ' '))}</b>, steps {text(steps[0])} to "
        f"{text(steps[-1])} ({len(steps)} lines of the log): {text(last[kind])}</li>"
        for kind, steps in heard.items()
    )
    title = f"Alarm, {name}" if name else "Alarm"
    return f'<div class="alarm"><h3>{text(title)}</h3><ul>{items}</ul></div>' if items else ""


def views(source: Source) -> str:
    """The picture of `ssmast show-views` that the run drew when it began."""
    file = None if source.run is None else source.run / "views.png"
    if file is None or not file.is_file():
        return ""
    shown = "two segments, their augmented views, and what patch-drop takes out of a view in each "
    shown += "of its modes (grey)"
    objective = source.read_mapping("config.yaml").get("objective", "ss_mast")
    if objective == "ssast":
        shown = "a segment, and which of its patches are masked (grey)"
    elif objective != "ss_mast":
        shown = f"segments, and what {objective} makes of them (grey: dropped)"
    note = f"The first clips of a batch: {shown}. Colours: corpus standard deviations."
    image = picture(file.read_bytes(), "views")
    return (
        f'<p class="soft">{text(note)}</p><div class="wide" tabindex="0" role="region" '
        f'aria-label="views of clips"><div class="broad">{image}</div></div>'
    )


def left_out(source: Source) -> str:
    """Clips that could not be used: how many for which reason, and their names."""
    rows = source.read_quarantine()
    if not rows:
        return "<p>None: every clip that was asked for could be read.</p>"
    # Reasons begin with the file's name; without it, like ones can be counted.
    kinds = Counter(reason.replace(name, "").strip() for name, reason in rows)
    counts = "".join(
        f"<tr><td>{count}</td><td>{text(kind)}</td></tr>" for kind, count in kinds.most_common(20)
    )
    names = "".join(f"<li>{text(name)}</li>" for name, _ in rows[:200])
    return (
        f'<p>{len(rows)} clips.</p><div class="wide"><table>{counts}</table></div>'
        f"<details><summary>Names</summary><ul>{names}</ul></details>"
    )


def once_more(source: Source, commands: list[str] | None, command: list[str] | None) -> str:
    """The commands that make all of it again."""
    if commands is None:
        commands = _commands(source) + ([shlex.join(command)] if command else [])
    if not commands:
        return ""
    results = [*source.probes, *source.clusters]
    versions = sorted({str(result["version"]) for result in results if "version" in result})
    note = f"<p class='soft'>ssmast {text(', '.join(versions))}</p>" if versions else ""
    return f"<pre>{text(chr(10).join(commands))}</pre>{note}"


def _commands(source: Source) -> list[str]:
    commands = []
    if source.run is not None and (source.run / "config.yaml").is_file():
        recipe = shlex.quote(f"recipe={source.run / 'config.yaml'}")
        door = "-m ssmast finetune" if source.is_fine_tuning else "pretrain/run.py"
        objective = source.read_mapping("config.yaml").get("objective", "ss_mast")
        if not source.is_fine_tuning and objective not in OBJECTIVES:
            door = f"FILE_OF_{objective}.py"
        commands.append(f"accelerate launch {door} {recipe} run=NEW_FOLDER")
    groups: dict[tuple[Any, ...], list[str]] = {}
    for one in source.probes:
        if not {"encoder", "pooling"} <= one.keys():
            continue  # of `ssmast finetune`, which scores what it trains
        group = (
            one["encoder"], one.get("data") or "FOLDER_OF_SETS", one["protocol"],
            len(one["scores"]), one.get("seed", 0), one["pooling"], one.get("layers", ""),
        )  # fmt: skip
        groups.setdefault(group, []).append(str(one["task"]))
    for (encoder, data, protocol, seeds, seed, pooling, layers), tasks in groups.items():
        words = [f"encoder={encoder}", f"data={data}", f"tasks=[{','.join(tasks)}]"]
        words += [f"protocol={protocol}", f"seeds={seeds}", f"seed={seed}"]
        if encoder != "log_mel":
            words += [f"pooling={pooling}"] + ([f"layers={layers}"] if layers else [])
        commands.append(f"python linear_eval/run.py {shlex.join(words)}")
    for one in source.clusters:
        words = [one["task"], f"encoder={one['encoder']}", f"data={one['data']}"]
        words += [f"part={one['part']}", f"normalise={one['normalisation']}"]
        words += [f"seeds={one['num_seeds']}", f"seed={one['seed']}"]
        if one.get("picture"):
            words += [f"classes=[{','.join(one['picture']['classes'])}]", "umap=true"]
        commands.append(f"ssmast cluster {shlex.join(map(str, words))}")
    return commands
