"""Typed `key=value` settings: one dataclass is the schema, the checks, the help and the recipe.

A command is `parse(Schema, argv)`, where Schema is a frozen dataclass under `Settings` whose fields
are made by `setting`. Values come, later ones winning, from the defaults, a recipe (YAML, safely
loaded), and `key=value` words. What `setting` says of a field is checked wherever a Schema is made:
by `parse`, in Python, by `dataclasses.replace`. `ssmast doctor` must start without yaml.
"""

import dataclasses
import difflib
import functools
import math
import operator
import os
import re
import shutil
import sys
import textwrap
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any, TypeVar

AUTO = "auto"
"""The word for a value that is left open (None) until what decides it is known."""

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

Schema = TypeVar("Schema")

# Help of keys that several commands have.
WORKERS = "threads that decode audio; 0: one for each core, at most 8"
CHANNEL = (
    "one channel of sound that has several: mean, first, loudest (files are decoded twice for "
    "it), left, right, or the number of one, from 0 on"
)
"""Help of the key `channel` of every command that reads sound."""

WINDOW = "seconds of the windows that sound is classified in; 0: as long as those of the training"
"""Help of the key `window` of every command that classifies."""

SEEDS = "[0, 4294967295]"
"""What scikit-learn takes for a seed."""

NETWORK_PRECISIONS = ("fp32", "bf16")
PRECISION = (
    "arithmetic of the network; bf16 moves vectors by about a hundredth (docs/gpus.md), and needs "
    "a GPU of compute capability 8.0 or a CPU that has it to be faster"
)
"""Help of the key `precision` of every command that runs a trained network."""


class UsageError(ValueError):
    """The command line or a recipe asks for something that does not exist; exit status 2."""


@dataclasses.dataclass(frozen=True)
class Key:
    """One key of a schema.

    Attributes:
        type: int, float, bool, str, a list of one of them, or a union with None.
        default: its value where nothing is said.
        help: what it means, one sentence without a capital.
        range: numbers that it may be, as intervals and numbers joined by " or ": "[0, 1)" is at
            least 0 and below 1, "0 or [2, inf)" is 0 or at least 2. Of a list: each of its numbers.
        choices: words that it may be; the empty default too. Of a list: each of its words.
        length: how many values a list must hold; 0 for any number.
        required: `parse` refuses an empty value.
        auto: None is a value, written `auto`, of what is decided later.
    """

    type: Any
    default: Any
    help: str
    range: str = ""
    choices: tuple[str, ...] = ()
    length: int = 0
    required: bool = False
    auto: bool = False

    @property
    def wanted(self) -> str:
        """What it may be, in words: "at least 0", "one of a, b, c"; empty for anything."""
        named = [choice for choice in self.choices if choice]
        words = " or ".join(named) if len(named) < 3 else f"one of {', '.join(named)}"
        words = _in_words(self.range) if self.range else words
        if self.length:
            words = f"{self.length} numbers{', each ' if words else ''}{words}"
        return f"{words} or {AUTO}" if words and self.auto else words

    def allows(self, value: Any) -> bool:
        """Whether it may be this value: the type, range, choices and length; NaN is no number."""
        try:
            if value is None or _convert(value, _without_none(self.type)) != value:
                return value is None and self.auto
        except (TypeError, ValueError):
            return False
        values = value if isinstance(value, list) else [value]
        if self.range and not all(_is_in(self.range, number) for number in values):
            return False
        if self.choices and value != self.default and not set(values) <= set(self.choices):
            return False
        return not self.length or len(values) == self.length


def setting(
    default: Any,
    help: str = "",
    *,
    range: str = "",
    choices: Iterable[str] = (),
    length: int = 0,
    required: bool = False,
    auto: bool = False,
) -> Any:
    """A dataclass field that is a key, see `Key`; or, of a dataclass, a section of keys.

    >>> import dataclasses
    >>> @dataclasses.dataclass(frozen=True, kw_only=True)
    ... class Example(Settings):
    ...     rate: float = setting(0.2, "fraction of patches dropped", range="[0, 1)")
    >>> Example(rate=1.0)
    Traceback (most recent call last):
    ssmast.settings.UsageError: rate must be at least 0 and below 1, got 1.0
    """
    if isinstance(default, type):
        return dataclasses.field(default_factory=default)
    facts = {"help": help, "range": range, "choices": tuple(choices), "length": length}
    facts |= {"required": required, "auto": auto}
    if isinstance(default, list):
        return dataclasses.field(default_factory=lambda: list(default), metadata=facts)
    return dataclasses.field(default=default, metadata=facts)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """What every schema is: frozen, and never outside of what its fields allow."""

    def __post_init__(self) -> None:
        """Refuse by a `UsageError` the first key that is not what it may be."""
        for name, key in flat_fields(type(self)).items():
            value = operator.attrgetter(name)(self)
            shown = repr(value) if isinstance(value, str) else value
            require(key.allows(value), name, shown, key.wanted or _type_name(key))


@dataclasses.dataclass(frozen=True, kw_only=True)
class SoundSettings(Settings):
    """What every command has that puts sound through a network."""

    channel: str = setting("mean", CHANNEL)
    workers: int = setting(0, WORKERS, range="[0, inf)")
    batch_seconds: float = setting(
        0.0,
        "seconds of audio that go through the network at once; 0: 20, on a GPU 600",
        range="[0, inf)",
    )


def require(holds: bool, key: str, value: object, wanted: str) -> None:
    """Refuse a setting that is not what was wanted by a `UsageError` that names both."""
    if not holds:
        raise UsageError(f"{key} must be {wanted}, got {value}")


@functools.cache
def flat_fields(schema: type, prefix: str = "") -> dict[str, Key]:
    """Every key of a schema by its dotted name, in the order of its definition."""
    keys: dict[str, Key] = {}
    hints = typing.get_type_hints(schema)
    for field in dataclasses.fields(schema):
        kind, factory = hints[field.name], field.default_factory
        if dataclasses.is_dataclass(kind):
            keys |= flat_fields(typing.cast(type, kind), f"{prefix}{field.name}.")
        else:
            default = field.default if factory is dataclasses.MISSING else factory()
            keys[prefix + field.name] = Key(kind, default, **field.metadata)
    return keys


def to_dict(settings: Any) -> dict[str, Any]:
    """The settings as plain nested dicts, lists, numbers and strings; `auto` where left open."""
    return dataclasses.asdict(
        settings, dict_factory=lambda items: {k: AUTO if v is None else v for k, v in items}
    )


def to_yaml(settings: Any) -> str:
    """The settings as YAML, every key written out, as a recipe holds them."""
    import yaml

    return yaml.safe_dump(to_dict(settings), allow_unicode=True, sort_keys=False)


def to_words(settings: Any) -> list[str]:
    """The `key=value` words that make these settings out of the defaults."""
    keys = flat_fields(type(settings))
    values = {name: operator.attrgetter(name)(settings) for name in keys}
    return [f"{k}={to_word(v)}" for k, v in values.items() if v != keys[k].default]


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
    path = Path(name)
    if path.suffix not in {".yaml", ".yml"}:
        path = folder / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in folder.glob("*.yaml")))
        raise UsageError(f"recipe {name!r} was not found; give a .yaml file or one of: {known}")
    try:
        content = _from_yaml(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UsageError(f"recipe {path} cannot be read as plain YAML: {error}") from error
    if not isinstance(content, dict):
        kind = type(content).__name__
        raise UsageError(f"recipe {path} must hold `key: value` lines, got {kind}")
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
    several: bool = False,
    dry_run: bool = False,
) -> Schema | None:
    """Settings from `key=value` words; None when `--help` or `--print-config` was all.

    Args:
        schema: frozen dataclass whose fields (made by `setting`) name, check and explain every key.
        argv: words after the command.
        command: what the user typed, for messages.
        description: shown above the keys by `--help`.
        recipes: folder of recipes; with it the key `recipe` chooses one.
        default_recipe: recipe used when none is named; empty for none.
        positional: key that a word without `=` sets; empty for none.
        several: there may be several such words, which are joined by new lines.
        dry_run: the command knows `--dry-run`; see `wants_dry_run`.

    Raises:
        UsageError: for an unknown key (naming the nearest), a value of the wrong type or out of
            range, a required key that is empty, a word without `=`, or an unknown flag.
    """
    keys = flat_fields(schema)
    if {"-h", "--help"} & set(argv):
        flags = "[--print-config] [--dry-run]" if dry_run else "[--print-config]"
        word = f" [{positional.upper()}]" if positional else ""
        usage = f"{command}{word} [key=value ...] {flags}"
        sys.stdout.write(_help(schema, usage=usage, description=description))
        return None
    if several:
        words = [in_home(word) for word in argv if _is_name(word, keys)]
        argv = [word for word in argv if not _is_name(word, keys)]
        argv += [f"{positional}={chr(10).join(words)}"] * bool(words)
    words, flags = _split_words(argv, keys, command=command, positional=positional)
    if "--dry-run" in flags and not dry_run:
        raise UsageError(f"`{command}` has no --dry-run; leave it out")
    values: dict[str, Any] = {}
    recipe = words.get("recipe", default_recipe) if recipes else ""
    if recipes and recipe:
        flat = flatten({**load_recipe(recipe, recipes), "recipe": recipe})
        values |= _converted(flat, keys, where="the recipe")
    values |= _converted(words, keys, where=f"`{command}`", as_yaml=True)
    settings = _made(schema, values)
    if "--print-config" in flags:
        sys.stdout.write(to_yaml(settings))
        return None
    for name, key in keys.items():
        if key.required and not operator.attrgetter(name)(settings):
            raise UsageError(f"{name}= is missing; wanted: {key.help}; see `{command} --help`")
    return settings


def command(
    schema: type[Schema], name: str, **how: Any
) -> Callable[[Callable[[Schema, list[str]], int]], Callable[[list[str]], int]]:
    """Makes the `main(argv)` of a command of a function of its settings and the words.

    The docstring of the function's module stands above the keys of `--help`.
    """

    def decorate(run: Callable[[Schema, list[str]], int]) -> Callable[[list[str]], int]:
        @functools.wraps(run)
        def main(argv: list[str]) -> int:
            about = sys.modules[run.__module__].__doc__ or ""
            config = parse(schema, argv, command=name, description=about, **how)
            return 0 if config is None else run(config, argv)

        return main

    return decorate


def wants_dry_run(argv: list[str]) -> bool:
    """True if the command is to check and print everything but start nothing."""
    return "--dry-run" in argv


def several_names(joined: str) -> list[str]:
    """The words that `several` joined; what exists under exactly that name is one of them."""
    if os.path.exists(joined):
        return [joined]
    lines, names = joined.split("\n"), list[str]()
    while lines:  # a file's own name may have new lines
        tried = ("\n".join(lines[:num]) for num in range(1, min(len(lines), 9) + 1))
        names.append(next((name for name in tried if os.path.exists(name)), lines[0]))
        lines = lines[names[-1].count("\n") + 1 :]
    return names


def named_files(argv: list[str], schema: type) -> list[str]:
    """The words that are no keys of a schema and no flags; `year=2024` is one if it exists so."""
    return [word for word in argv if _is_name(word, flat_fields(schema))]


def _is_name(word: str, keys: Mapping[str, Key]) -> bool:
    """Whether a word is neither a key nor a flag, but names something."""
    if not word.startswith("-") and "=" not in word:
        return True
    file, _, span = word.partition("#t=")  # a part of a file: FILE#t=START,STOP
    if span and ("=" not in file or os.path.exists(file)):
        return True
    return word.partition("=")[0] not in {*keys, "recipe"} and os.path.exists(word)


def refuse_renamed(names: Iterable[str], *, where: str) -> None:
    """Refuse dotted keys of an older version by a `UsageError` that names `where` they are."""
    for name in names:
        if name in RENAMED:
            raise UsageError(f"{name} in {where} is now {RENAMED[name]}; use that name")


def _split_words(
    argv: list[str], keys: Mapping[str, Key], *, command: str, positional: str = ""
) -> tuple[dict[str, str], set[str]]:
    words: dict[str, str] = {}
    flags: set[str] = set()
    for word in argv:
        if word in {"--print-config", "--dry-run"}:
            flags.add(word)
        elif positional and positional not in words and _is_name(word, keys):
            words[positional] = word
        elif not word.startswith("-") and "=" in word:
            key, _, words[key] = word.partition("=")
        else:
            bare = word.lstrip("-")
            hint = f"write {bare}" if "=" in bare.strip("=") else f"see `{command} --help`"
            said = f"`{command}` takes key=value words without spaces, got {word!r}"
            if positional in words and _is_name(word, keys):
                said = (
                    f"`{command}` takes key=value words and one without a key, which is "
                    f"{positional}={words[positional]} already, got {word!r}"
                )
            raise UsageError(f"{said}; {hint}")
    return words, flags


def in_home(text: str) -> str:
    """A path with `~` as the home folder, as a shell does it at the beginning of a word alone.

    Something that is called so exactly is left as it is.
    """
    return text if not text.startswith("~") or os.path.exists(text) else os.path.expanduser(text)


def _converted(
    flat: Mapping[str, Any], keys: dict[str, Key], *, where: str, as_yaml: bool = False
) -> dict[str, Any]:
    """The values in the types of their keys."""
    values = {}
    for name, value in flat.items():
        if name not in keys:
            refuse_renamed([name] if RENAMED.get(name) in keys else [], where=where)
            # The last part of a dotted key is what people remember: `lr` finds `optim.lr`,
            # and `optim.epochs` finds `epochs`.
            tails = {known.rpartition(".")[2]: known for known in keys} | {k: k for k in keys}
            last = name.rpartition(".")[2]
            near = [last] if last in tails else difflib.get_close_matches(name, tails, n=1)
            hint = f"; did you mean {tails[near[0]]!r}?" if near else "; --help lists the keys"
            if name == "device":
                hint = "; CUDA_VISIBLE_DEVICES=1 before the command takes the second GPU, = the CPU"
            raise UsageError(f"unknown key {name!r} in {where}{hint}")
        key = keys[name]
        try:
            plain = _from_yaml(value) if as_yaml and key.type is not str else value
            is_open = key.auto and plain == AUTO
            kept = None if is_open else _convert(plain, _without_none(key.type))
            values[name] = in_home(kept) if isinstance(kept, str) else kept
        except (TypeError, ValueError) as error:
            reason = f"does not fit: wanted {_type_name(key)}"
            raise UsageError(f"{name}={value} in {where} {reason}") from error
    return values


def _convert(value: Any, kind: Any) -> Any:
    """The value as int, float, bool, str, or list of those; TypeError, ValueError if it is none."""
    if typing.get_origin(kind) is list and isinstance(value, list):
        return [_convert(item, *typing.get_args(kind)) for item in value]
    if kind == list[str] and isinstance(value, str) and value and "," not in value:
        return [value]  # labels=species
    if kind is str and isinstance(value, list):
        return to_word(value)  # a mixture written out in a recipe: text as on a command line
    if kind is bool and isinstance(value, bool):
        return value
    # YAML reads yes, no, on and off as truth values: which word it was is lost.
    if kind not in (str, int, float) or value is None or isinstance(value, bool | list | dict):
        raise TypeError
    if kind is str:
        return str(value)
    number = float(value)  # 1e-3 is text, and so is 010
    if math.isnan(number) or (kind is int and not number.is_integer()):
        raise ValueError
    if kind is int and isinstance(value, str):
        return int(Decimal(value))
    return kind(value if isinstance(value, int) else number)


def _made(schema: type[Schema], values: dict[str, Any], prefix: str = "") -> Schema:
    hints, found = typing.get_type_hints(schema), {}
    for field in dataclasses.fields(typing.cast(Any, schema)):
        name = prefix + field.name
        if dataclasses.is_dataclass(hints[field.name]):
            found[field.name] = _made(hints[field.name], values, f"{name}.")
        elif name in values:
            found[field.name] = values[name]
    return schema(**found)


def to_word(value: Any) -> str:
    """A value as a word of the command line holds it."""
    if value is None or isinstance(value, str):
        return AUTO if value is None else value
    import yaml

    text = yaml.safe_dump(value, default_flow_style=True, width=10**9, allow_unicode=True)
    return text.removesuffix("...\n").strip()


def _from_yaml(text: str) -> Any:
    import yaml

    try:
        return _loader()(text).get_single_data()
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from error


@functools.cache
def _loader() -> Any:
    """YAML's safe loader, less what it changes in silence.

    What it would print otherwise stays text: 010 (to YAML 8), 1:30 (90), 1.50, 2024-01-01. So a
    class may be called 01, and `steps=010` is 10. A key that comes twice is refused.
    """
    import yaml

    class Loader(yaml.SafeLoader):
        yaml_implicit_resolvers: typing.ClassVar = {
            first: [(tag, form) for tag, form in own if tag.endswith((":bool", ":null", ":merge"))]
            for first, own in yaml.SafeLoader.yaml_implicit_resolvers.items()
        }

        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
            for name in sorted({name for name in names if names.count(name) > 1}):
                raise yaml.YAMLError(f"{name} comes twice{node.start_mark}")
            return super().construct_mapping(node, deep)

    whole, part = r"0|-?[1-9]\d*", r"-?(0|[1-9]\d{,14})\.(0|\d{,3}[1-9])"
    for kind, form in (("int", whole), ("float", part)):
        pattern = re.compile(f"(?:{form})$", re.ASCII)
        Loader.add_implicit_resolver(f"tag:yaml.org,2002:{kind}", pattern, list("-0123456789"))
    return Loader


def _without_none(kind: Any) -> Any:
    """X of `X | None`."""
    return typing.get_args(kind)[0] if isinstance(kind, types.UnionType) else kind


def _intervals(range: str) -> Iterator[tuple[str, str, str, str]]:
    for part in range.split(" or "):
        if part[0] in "[(":
            low, high = part[1:-1].split(", ")
            yield part[0], low, high, part[-1]
        else:
            yield "[", part, part, "]"


def _is_in(range: str, number: float) -> bool:
    return any(
        (float(low) <= number if left == "[" else float(low) < number)
        and (number <= float(high) if right == "]" else number < float(high))
        for left, low, high, right in _intervals(range)
    )


def _in_words(range: str) -> str:
    """A range as people say it.

    >>> [_in_words(each) for each in ("[0, inf)", "(0, 1)", "[0, 1]", "0 or [2, inf)")]
    ['at least 0', 'above 0 and below 1', 'from 0 to 1', '0 or at least 2']
    """
    said = []
    for left, low, high, right in _intervals(range):
        above = f"{'at least' if left == '[' else 'above'} {low}"
        below = "" if high == "inf" else f" and {'at most' if right == ']' else 'below'} {high}"
        closed = low if low == high else f"from {low} to {high}"
        said.append(closed if left + right == "[]" else above + below)
    return " or ".join(said)


def _type_name(key: Key) -> str:
    plain = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}
    lists = {list[str]: "[a, 'no']", list[int]: "[1, 2]", list[float]: "[0.5, 1]"}
    kind = _without_none(key.type)
    name = plain[kind] if kind in plain else f"a list such as {lists[kind]}"
    return name + (f" or {AUTO}" if key.auto else "")


def _help(schema: type, *, usage: str, description: str) -> str:
    """Usage, description, and of each key its meaning, what it may be, and its default."""
    keys, hints = flat_fields(schema), typing.get_type_hints(schema)
    lines, section = [usage, "", description.strip(), ""], ""
    margin = 4 + min(28, max(len(name) for name in keys))
    wrapper = textwrap.TextWrapper(
        width=max(80, min(120, shutil.get_terminal_size((100, 24)).columns)),
        subsequent_indent=" " * margin, break_long_words=False, break_on_hyphens=False,
    )  # fmt: skip
    for name, key in sorted(keys.items(), key=lambda item: "." in item[0]):  # sections last
        if name.rpartition(".")[0] != section:
            section = name.rpartition(".")[0]
            about = (hints[section].__doc__ or "").splitlines()[0]
            lines += ["", f"  {section}: {about}"]
        kind = _type_name(key).partition(" such as")[0].removeprefix("a ")
        if key.wanted:
            kind = key.wanted if key.choices else f"{kind.partition(' or ')[0]}, {key.wanted}"
        default = "" if key.default in ("", []) else f"; default {to_word(key.default)}"
        facts = f"[{kind}{'; required' if key.required else default}]"
        wrapper.initial_indent = f"  {name}  ".ljust(margin)
        lines += wrapper.wrap(f"{key.help} {facts}")
    return "\n".join(lines) + "\n"
