"""Typed `key=value` settings: one dataclass is the schema, the help text and the file format.

A command is `parse(Schema, argv)`. Values come, later ones winning, from the defaults of the
dataclass, from a recipe (YAML, safely loaded), and from `key=value` words.
yaml and omegaconf are imported where they are used, so that `ssmast doctor` starts without them.

Settings that no run can mean, refused in one sentence before any audio is read.
"""

import dataclasses
import difflib
import functools
import math
import operator
import os
import re
import sys
import types
import typing
from collections.abc import Iterable, Mapping
from operator import attrgetter
from pathlib import Path
from typing import Any, TypeVar

if typing.TYPE_CHECKING:
    from omegaconf import DictConfig

Schema = TypeVar("Schema")


class UsageError(ValueError):
    """The command line or a recipe asks for something that does not exist; exit status 2."""


RENAMED = {
    "method": "objective",
    "max_bad_share": "max_bad_fraction",
    "chunk_seconds": "window_seconds",
    "export.chunk_seconds": "export.window_seconds",
    "optim.accumulate": "optim.gradient_accumulation_steps",
    "optim.clip_norm": "optim.max_grad_norm",
    "optim.between": "optim.wise_ft_alphas",
    "optim.average": "optim.swa_fraction",
    "scoring.slack": "scoring.one_se_rule",
    "loss.queue_share": "loss.queue_fraction",
}
"""Keys of 0.1.0 -> their names now. An old one is refused with the new one, not read."""


def refuse_renamed(keys: Iterable[str], *, where: str) -> None:
    """Refuse settings that an older version wrote.

    Args:
        keys: dotted names.
        where: what holds them, for the message.

    Raises:
        UsageError: naming the first that has another name now.
    """
    for key in keys:
        if key in RENAMED:
            raise UsageError(f"{key} in {where} is now {RENAMED[key]}; write it so")


def setting(default: Any, help: str) -> Any:
    """A dataclass field with its help text; mutable defaults are copied per instance.

    A field of type `float | None` and the like may be left open by the word `auto`.
    """
    metadata = {"help": help}
    if dataclasses.is_dataclass(default) and isinstance(default, type):
        return dataclasses.field(default_factory=default, metadata=metadata)
    if isinstance(default, list | dict):
        return dataclasses.field(default_factory=lambda: type(default)(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def flat_fields(schema: type, prefix: str = "") -> dict[str, dataclasses.Field[Any]]:
    """Every leaf of a nested dataclass by its dotted name, in the order of its definition."""
    leaves: dict[str, dataclasses.Field[Any]] = {}
    hints = typing.get_type_hints(schema)
    for field in dataclasses.fields(schema):
        kind = hints[field.name]
        if dataclasses.is_dataclass(kind):
            leaves |= flat_fields(typing.cast(type, kind), f"{prefix}{field.name}.")
        else:
            field.type = kind
            leaves[prefix + field.name] = field
    return leaves


def to_yaml(settings: Any) -> str:
    """The settings as YAML, every key written out, as a recipe holds them."""
    import yaml

    tree = to_dict(settings)
    for name, field in flat_fields(type(settings)).items():
        *parents, key = name.split(".")
        branch = functools.reduce(operator.getitem, parents, tree)
        if branch[key] is None and _may_be_open(field):
            branch[key] = "auto"
    return yaml.safe_dump(tree, allow_unicode=True, sort_keys=False)


def to_dict(settings: Any) -> dict[str, Any]:
    """The settings as plain nested dicts, lists, numbers and strings."""
    return dataclasses.asdict(settings)


def to_words(settings: Any) -> list[str]:
    """The `key=value` words that make these settings out of the defaults."""
    import yaml

    usual, words = flatten(to_dict(type(settings)())), []
    for key, value in flatten(to_dict(settings)).items():
        if value != usual[key]:
            text = (
                value
                if isinstance(value, str)
                else yaml.safe_dump(value, default_flow_style=True, width=10**9)
                .removesuffix("...\n")
                .strip()
            )
            words.append(f"{key}={text}")
    return words


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Every leaf of nested mappings by its dotted name, in their order.

    >>> flatten({"seed": 0, "optim": {"lr": 1e-3}})
    {'seed': 0, 'optim.lr': 0.001}
    """
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def load_recipe(name: str, folder: Path) -> dict[str, Any]:
    """The mapping in a recipe: a YAML file's path, or the name of one in `folder`.

    Raises:
        UsageError: if there is no such recipe, or it is not a plain mapping.
    """
    import yaml

    path = Path(name)
    if path.suffix not in {".yaml", ".yml"}:
        path = folder / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in folder.glob("*.yaml")))
        raise UsageError(f"recipe {name!r} was not found; give a .yaml file or one of: {known}")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = str(error).replace("\n", " ")
        raise UsageError(f"recipe {path} cannot be read as plain YAML: {reason}") from error
    if not isinstance(content, dict):
        raise UsageError(
            f"recipe {path} must hold `key: value` lines, got {type(content).__name__}"
        )
    return content


def parse(
    schema: type[Schema],
    argv: list[str],
    *,
    command: str,
    description: str = "",
    recipes: Path | None = None,
    default_recipe: str = "",
    positional: str = "",
    dry_run: bool = False,
) -> Schema | None:
    """Settings from `key=value` words; None when `--help` or `--print-config` was all.

    Args:
        schema: dataclass whose fields (made by `setting`) name, type and explain every key.
        argv: words after the command.
        command: what the user typed, for messages.
        description: shown above the keys by `--help`.
        recipes: folder of recipes; with it the key `recipe` chooses one.
        default_recipe: recipe used when none is named; empty for none.
        positional: key that a word without `=` sets; empty for none.
        dry_run: the command knows `--dry-run`; see `wants_dry_run`.

    Raises:
        UsageError: for an unknown key (naming the nearest), a value of the wrong type, a word
            without `=`, or an unknown flag.
    """
    from omegaconf import OmegaConf

    leaves = flat_fields(schema)
    if {"-h", "--help"} & set(argv):
        flags = "[--print-config] [--dry-run]" if dry_run else "[--print-config]"
        usage = f"{command} [key=value ...] {flags}"
        sys.stdout.write(_help(leaves, schema, usage=usage, description=description))
        return None
    words, flags = _split_words(argv, command=command, positional=positional)
    if "--dry-run" in flags and not dry_run:
        raise UsageError(f"`{command}` has no --dry-run; leave the word out")
    layers: list[dict[str, Any]] = []
    if recipes is not None:
        recipe = words.get("recipe", default_recipe)
        if recipe:
            layers.append({**load_recipe(recipe, recipes), "recipe": recipe})
    config = OmegaConf.structured(schema)
    OmegaConf.set_readonly(config, False)
    for layer in layers:
        flat = flatten(layer)
        _check_keys(flat, leaves, where="the recipe")
        flat = {k: None if v == "auto" and _may_be_open(leaves[k]) else v for k, v in flat.items()}
        config = _merge(config, flat, where="the recipe")
    values = {key: _value(key, text, leaves, command=command) for key, text in words.items()}
    config = _merge(config, values, where=f"`{command}`")
    settings = typing.cast(Schema, OmegaConf.to_object(config))
    if "--print-config" in flags:
        sys.stdout.write(to_yaml(settings))
        return None
    return settings


def wants_dry_run(argv: list[str]) -> bool:
    """True if the command is to check and print everything but start nothing."""
    return "--dry-run" in argv


def named_files(argv: list[str]) -> list[str]:
    """The words that are no keys and no flags, or files all the same, such as take=1.wav."""
    return [w for w in argv if os.path.isfile(w) or not (w.startswith("-") or "=" in w)]


def _split_words(
    argv: list[str], *, command: str, positional: str = ""
) -> tuple[dict[str, str], set[str]]:
    words: dict[str, str] = {}
    flags: set[str] = set()
    for word in argv:
        if word in {"--print-config", "--dry-run"}:
            flags.add(word)
        elif (
            positional and positional not in words and not word.startswith("-") and "=" not in word
        ):
            words[positional] = word
        elif word.startswith("-") or "=" not in word:
            bare = word.lstrip("-")
            hint = f"write {bare}" if "=" in bare.strip("=") else f"see `{command} --help`"
            raise UsageError(
                f"`{command}` takes key=value words without spaces, got {word!r}; {hint}"
            )
        else:
            key, _, text = word.partition("=")
            words[key] = text
    return words, flags


def _check_keys(
    flat: dict[str, Any], leaves: dict[str, dataclasses.Field[Any]], *, where: str
) -> None:
    for key in flat:
        if key not in leaves:
            if RENAMED.get(key) in leaves:
                refuse_renamed([key], where=where)
            # The last part of a dotted key is what people remember: `lr` finds `optim.lr`.
            tails = {name.rpartition(".")[2]: name for name in leaves}
            near = difflib.get_close_matches(key, leaves, n=1, cutoff=0.6)
            near = near or [
                tails[t] for t in difflib.get_close_matches(key, tails, n=1, cutoff=0.6)
            ]
            hint = f"; did you mean {near[0]!r}?" if near else "; --help lists the keys"
            raise UsageError(f"unknown key {key!r} in {where}{hint}")


def _value(key: str, text: str, leaves: dict[str, dataclasses.Field[Any]], *, command: str) -> Any:
    import yaml

    _check_keys({key: text}, leaves, where=f"`{command}`")
    kind: Any = leaves[key].type
    if kind is str:
        return text  # a path may hold any character, so YAML must not read it
    if isinstance(kind, types.UnionType):
        (kind,) = set(typing.get_args(kind)) - {types.NoneType}
        if text in ({"", "null", "none"} if kind is str else {"auto"}):
            return None
        if kind is str:
            return text
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UsageError(f"{key}={text} cannot be read as a value") from error
    if isinstance(value, str) and kind in (int, float):
        try:  # YAML reads 1e-3 without a dot as text
            value = float(value)
        except ValueError:
            return value
    if kind is int and isinstance(value, float) and value.is_integer():
        return int(value)
    return value


def _merge(config: "DictConfig", flat: dict[str, Any], *, where: str) -> "DictConfig":
    import yaml
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    for key, value in flat.items():
        if isinstance(value, list) and isinstance(OmegaConf.select(config, key), str):
            # A mixture written out in a recipe: kept as the text that a command line would hold.
            value = yaml.safe_dump(value, default_flow_style=True, width=10**9).strip()
        if isinstance(value, float) and math.isnan(value):
            raise UsageError(f"{key}={value} in {where} does not fit: it is no number")
        if isinstance(value, str):
            value = _taken_literally(value)
        try:
            OmegaConf.update(config, key, value)
        except OmegaConfBaseException as error:
            reason = str(error).splitlines()[0]
            raise UsageError(f"{key}={value} in {where} does not fit: {reason}") from error
    return config


def _taken_literally(text: str) -> str:
    """The text with every `${` escaped: omegaconf would put another key, or a variable, there."""
    return re.sub(r"(\\*)\$\{", lambda found: 2 * found[1] + "\\${", text)


def _may_be_open(field: dataclasses.Field[Any]) -> bool:
    kinds = typing.get_args(field.type)
    return isinstance(field.type, types.UnionType) and str not in kinds


def _type_name(kind: Any) -> str:
    if isinstance(kind, types.UnionType):
        return str(kind).replace("None", "auto")
    return kind.__name__ if isinstance(kind, type) and not typing.get_args(kind) else str(kind)


def _help(
    leaves: dict[str, dataclasses.Field[Any]], schema: type, *, usage: str, description: str
) -> str:
    defaults = flatten(dataclasses.asdict(schema()))
    lines = [usage, "", description.strip(), ""]
    width = max(len(name) for name in leaves)
    for name, field in leaves.items():
        default = defaults.get(name)
        default = "auto" if default is None and _may_be_open(field) else default
        shown = "" if default in ("", None, []) else f" [{default}]"
        text = field.metadata.get("help", "")
        lines.append(f"  {name:<{width}}  {text}{shown} ({_type_name(field.type)})")
    return "\n".join(lines) + "\n"


SHARE, ANY, COUNT = (0.0, 1.0), (0.0, math.inf), (1.0, math.inf)
"""Ranges for `in_range`: a share of a whole; any number that is not negative; one or more."""


def require(holds: bool, key: str, value: object, wanted: str) -> None:
    """Refuse a setting that is not what was wanted.

    Raises:
        UsageError: naming both.
    """
    if not holds:
        raise UsageError(f"{key} must be {wanted}, got {value}")


def one_of(key: str, value: str, allowed: tuple[str, ...]) -> None:
    """Refuse a word that is not one of those allowed.

    Raises:
        UsageError: naming them.
    """
    require(value in allowed, key, repr(value), " or ".join(allowed))


def in_range(settings: Any, ranges: Mapping[str, tuple[float, float]]) -> None:
    """Refuse numbers out of their range; NaN is out of every one.

    Args:
        settings: a dataclass of them.
        ranges: dotted key -> smallest and largest; of a list, of each of its numbers. A key that
            is left open (None) has none.

    Raises:
        UsageError: naming the first that is not.
    """
    for key, (low, high) in ranges.items():
        value = attrgetter(key)(settings)
        numbers = value if isinstance(value, list) else [] if value is None else [value]
        wanted = f"at least {low:g}" if math.isinf(high) else f"from {low:g} to {high:g}"
        require(all(low <= number <= high for number in numbers), key, value, wanted)
