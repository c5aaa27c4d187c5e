"""What the page says of a run: its setup, its curves and views, and how to repeat it."""

import shlex
from collections import Counter
from collections.abc import Sequence
from typing import Any

from ssmast.evaluation.baselines import UNTRAINED
from ssmast.evaluation.foreign import is_foreign
from ssmast.evaluation.results import TITLES, Result
from ssmast.evaluation.task_spec import quoted
from ssmast.html import details, key_table, picture, section, table, text
from ssmast.report.curves import MOST_RUNS, SERIES_STYLES, curves
from ssmast.report.sources import Source

# By objective, as config.yaml names it; another one is called by that name.
_OBJECTIVES = {
    "ss_mast": "SS-MAST",
    "ss_mast_mosaic": "SS-MAST mosaic",
    "swav": "SwAV",
    "vicreg": "VICReg",
    "barlow_twins": "Barlow Twins",
    "dino": "DINO",
    "ssast": "SSAST",
    "finetune": "fine-tuning",
}
_VIEWS = {
    "ss_mast": "two segments, their augmented views, and what patch-drop takes out of a view in "
    "each of its modes (grey)",
    "ss_mast_mosaic": "two segments, their views, and the lines that each view lost (grey)",
    "ssast": "a segment, and which of its patches are masked (grey)",
    "finetune": "each segment as it is cut from its clip, and as the network is fed it, with the "
    "label it is to predict",
}


def headline(source: Source) -> dict[str, str]:
    """The few numbers in large print: of fine-tuning the test score, of pretraining the loss."""
    shown: dict[str, str] = {}
    tuned = source.tuned
    if tuned is not None:
        shown[f"{tuned.part} {tuned.metric_title}"] = f"{100 * tuned.mean:.1f} %"
        if tuned.valid is not None:
            shown[f"validation {tuned.metric_title}"] = f"{100 * tuned.valid:.1f} %"
        shown[f"{tuned.part} clips"] = f"{tuned.n or tuned.n_test:,}"
    metrics = source.read_metrics()
    if metrics:
        last = {key: value for row in metrics for key, value in row.items()}  # the last of each
        shown["steps"] = str(last.get("step", ""))
        step = _chosen_step(tuned)
        if step is not None:
            shown["weights kept from"] = f"step {step}"
        for key, name in (("loss", "loss"), ("rank_embedding", "effective rank")):
            if tuned is None and isinstance(last.get(key), int | float):
                shown[name] = f"{last[key]:.3g}"
    frozen = [result for result in source.probes if result is not tuned]
    names = {name for result in frozen for name in result.columns}
    for name in (name for name in TITLES if name in names):
        means = [result.columns[name].mean for result in frozen if name in result.columns]
        several = f", mean of {len(means)} tasks" if len(means) > 1 else ""
        shown[f"{TITLES[name]}{several}"] = f"{100 * sum(means) / len(means):.1f} %"
    return shown


# What keys of facts.json are called on the page.
_FACTS = {
    "corpus": "SHA-256 of the listing",
    "mean": "log-mel mean",
    "std": "log-mel std",
    "segments": "segments a clip",
    "version": "version of ssmast",
}


def _chosen_step(result: Result | None) -> Any:
    """The step whose weights fine-tuning kept; None where that is not known."""
    return result.chosen[0].get("step") if result is not None and result.chosen else None


def about(source: Source) -> str:
    """The setup: one sentence, what the weights started from, then every setting."""
    config, facts = source.read_mapping("config.yaml"), source.read_mapping("facts.json")
    start = source.read_mapping("init.json")
    parts = [f"<p>{text(_sentence(source, config, facts))}</p>" if config else ""]
    if start.get("source") or config.get("init"):
        origin = str(start.get("source") or config["init"])
        origin = "random weights" if origin == "none" else origin
        parts.append(f"<p>Initial weights: {text(origin)}.</p>")
    tuned, step = source.tuned, _chosen_step(source.tuned)
    if tuned is not None and step is not None:
        same = " (the linear probe of the frozen encoder, before the first step)" * (step == 0)
        parts.append(
            f"<p>The weights of step {step}{same} were kept: best by {text(tuned.metric_title)} on "
            f"the {tuned.n_valid} clips of the validation part.</p>"
        )
    parts.append(key_table({_FACTS.get(key, key): value for key, value in facts.items()}))
    parts.append(details("All settings", key_table(config)))
    return section("Setup", *parts)


def _sentence(source: Source, config: dict[str, Any], facts: dict[str, Any]) -> str:
    network = config.get("model") or "an encoder"
    clips = f"{facts['clips']:,} clips of " if "clips" in facts else ""
    data = facts.get("data") or config.get("data") or "the built-in synthetic corpus"
    objective = _OBJECTIVES.get(source.objective, source.objective)
    by = f" by {objective}" if objective else ""
    sentence = f"{network}, trained{by} on {clips}{data}"
    if config.get("steps") and config.get("batch_size"):
        sentence += f" for {config['steps']:,} steps of {config['batch_size']:,} clips"
    return sentence + (f", seed {config['seed']}." if "seed" in config else ".")


def learnt(sources: Sequence[Source]) -> list[str]:
    """Alarms and curves of the first run that has them, the other runs' beside."""
    logged = [(source, rows) for source in sources if (rows := source.read_metrics())]
    if not logged:
        return []
    (first, rows), others = logged[0], logged[1:MOST_RUNS]
    pictures = curves(rows, others=[other for _, other in others], objective=first.objective)
    main = "".join(_figure(name, svg) for name, svg, is_main in pictures if is_main)
    more = "".join(_figure(name, svg) for name, svg, is_main in pictures if not is_main)
    key = "".join(
        f'<span class="{colour}"><b>\u2501</b> {text(source.name)}</span>'
        for colour, (source, _) in zip(SERIES_STYLES, logged, strict=False)
    )
    return [
        *(_alarms(rows, "" if len(sources) < 2 else source.name) for source, rows in logged),
        f'<p class="key">{key}</p>' if others else "",
        f'<div class="curves">{main}</div>' if main else "",
        details("More curves", f'<div class="curves">{more}</div>' if more else ""),
    ]


def _figure(name: str, svg: str) -> str:
    named = svg.replace("<svg", f'<svg role="img" aria-label="{text(name)}"', 1)
    return f"<figure><figcaption>{text(name)}</figcaption>{named}</figure>"


def _alarms(metrics: list[dict[str, Any]], name: str) -> str:
    """What the alarm said, and at which steps."""
    steps_of: dict[str, list[Any]] = {}
    last: dict[str, str] = {}
    for row in metrics:
        alarms = row.get("alarms")
        for kind, sentence in (alarms if isinstance(alarms, dict) else {}).items():
            steps_of.setdefault(kind, []).append(row.get("step"))
            last[kind] = str(sentence)
    items = "".join(
        f"<li><b>{text(kind.replace('_', ' '))}</b>, steps {text(steps[0])} to "
        f"{text(steps[-1])} ({len(steps)} lines of the log): {text(last[kind])}</li>"
        for kind, steps in steps_of.items()
    )
    title = f"Alarm, {name}" if name else "Alarm"
    return f'<div class="alarm"><h3>{text(title)}</h3><ul>{items}</ul></div>' if items else ""


def views(source: Source) -> str:
    """The picture of `ssmast show-views` that the run drew when it began."""
    file = None if source.run is None else source.run / "views.png"
    if file is None or not file.is_file():
        return ""
    shown = _VIEWS.get(source.objective, "what the networks are fed")
    note = f"The first clips of a batch: {shown}. Colours: corpus standard deviations."
    image = picture(file.read_bytes(), "views")
    return (
        f'<p class="soft">{text(note)}</p><div class="wide" tabindex="0" role="region" '
        f'aria-label="views of clips"><div class="broad">{image}</div></div>'
    )


def left_out(source: Source) -> str:
    """Clips that could not be used: how many for which reason, and their names."""
    rows = source.read_quarantine()
    # Rows of a set's table that no quarantine names: without a label, of no part.
    missing = "".join(
        f"<p>{text(one.task)}: {count:,} rows of the set ({text(why)}).</p>"
        for one in (*source.probes, *source.clusters)
        for why, count in one.left_out.items()
        if why != "unreadable" and count
    )
    if not rows:
        return missing or "<p>None: every clip that was asked for could be read.</p>"
    # Reasons begin with the file's name; without it, like ones can be counted.
    kinds = Counter(reason.replace(name, "").strip() for name, reason in rows)
    counts = table((count, kind) for kind, count in kinds.most_common(20))
    names = "".join(f"<li>{text(name)}</li>" for name, _ in rows[:200])
    return (
        f"{missing}<p>{len(rows)} clips.</p>{counts}"
        f"<details><summary>Names</summary><ul>{names}</ul></details>"
    )


def reproduce(source: Source, commands: list[str] | None, command: list[str] | None) -> str:
    """The commands that make all of it again."""
    if commands is None:
        commands = _commands(source) + ([shlex.join(command)] if command else [])
    if not commands:
        return ""
    versions = sorted({result.version for result in (*source.probes, *source.clusters)})
    note = f"<p class='soft'>ssmast {text(', '.join(versions))}</p>" if versions else ""
    return f"<pre>{text(chr(10).join(commands))}</pre>{note}"


def _commands(source: Source) -> list[str]:
    commands = []
    if source.run is not None and (source.run / "config.yaml").is_file():
        recipe = shlex.quote(f"recipe={source.run / 'config.yaml'}")
        command = "ssmast finetune" if source.is_fine_tuning else "ssmast pretrain"
        if source.objective and source.objective not in _OBJECTIVES:
            command = f"python FILE_OF_{source.objective}.py"  # ran by ssmast.train
        commands.append(f"{command} {recipe} run=NEW_FOLDER")
    groups: dict[tuple[Any, ...], list[str]] = {}
    for one in source.probes:
        if one.column == "fine-tuned":
            continue  # `ssmast finetune` scores what it trains
        group = (
            one.encoder, one.data or "FOLDER_OF_SETS", one.protocol, len(one.scores), one.seed,
            one.pooling, one.layers,
        )  # fmt: skip
        groups.setdefault(group, []).append(one.task)
    for (encoder, data, protocol, seeds, seed, pooling, layers), tasks in groups.items():
        words = [f"encoder={encoder}", f"data={data}", f"tasks=[{','.join(tasks)}]"]
        words += [f"protocol={protocol}", f"seeds={seeds}", f"seed={seed}"]
        if encoder not in UNTRAINED:
            is_ours = not is_foreign(encoder)  # others pool as they do, and most have no layers
            words += [f"pooling={pooling}"] * bool(pooling and is_ours)
            words += [f"layers={layers}"] * bool(layers)
        commands.append(f"ssmast probe {shlex.join(words)}")
    for one in source.clusters:
        words = [one.task, f"encoder={one.encoder}", f"data={one.data}"]
        words += [f"part={one.part}", f"normalise={one.normalisation}"]
        words += [f"seeds={one.num_seeds}", f"seed={one.seed}"]
        if one.picture is not None:
            words += [f"classes=[{','.join(map(quoted, one.picture['classes']))}]", "umap=true"]
        commands.append(f"ssmast cluster {shlex.join(words)}")
    return commands
