"""The labels that WebDataset keeps beside each sound: members .cls, .json and .txt of one key.

A key is a member's name up to the first dot of its last part. A number in .cls stays a number,
since nothing in a tar names the classes.

Source: https://github.com/webdataset/webdataset, README, "The WebDataset format".
"""

import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from ssmast.audio.corpus.listings import cell_of, split_word
from ssmast.audio.corpus.table import LABELS_BETWEEN, find_column, table_of
from ssmast.audio.corpus.tar import TarReader, index_tar

_log = logging.getLogger(__name__)

_ENDINGS = (".cls", ".json", ".txt")
_LARGEST = 1 << 20


def key_of(name: str) -> str:
    """The key of a member.

    >>> key_of("a.b/000.left.wav")
    'a.b/000'
    """
    folder, file = os.path.split(name)
    return os.path.join(folder, file.split(".")[0])


def read_labels(tars: Sequence[Path | str]) -> pa.Table | None:
    """What stands beside the sounds of some tars, a row a sound, in their order; None for nothing.

    The column `label` is what .cls holds, else what `label` in .json says, else what .txt holds;
    other values in .json are columns of their own. With a word such as train in the names of the
    tars there is a column `split`.

    Args:
        tars: paths or URLs.

    Raises:
        ValueError: if a .json is none, or a member is not UTF-8.
        AudioError, RemoteError: if a tar cannot be read.
    """
    rows: list[dict[str, str]] = []
    lists: set[str] = set()
    splits: list[str] = []
    reader = TarReader(list(tars))
    num_large = 0
    for number, tar in enumerate(tars):
        about: dict[str, dict[str, str]] = {}
        beside = index_tar(tar, endings=_ENDINGS)
        for name, offset, size in zip(
            beside.names.to_pylist(), beside.offsets.tolist(), beside.sizes.tolist(), strict=True
        ):
            member = os.fsdecode(name)
            if size > _LARGEST:
                num_large += 1
                continue
            data = reader.read(number, offset, size, member)
            own = about.setdefault(key_of(member), {})
            for column, value in _values(data, member, tar).items():
                if isinstance(value, list):
                    lists.add(column)
                if (cell := cell_of(value, tar)) is not None:
                    own[column] = cell
        sounds = [os.fsdecode(name) for name in index_tar(tar).names.to_pylist()]
        rows += [about.get(key_of(name), {}) for name in sounds]
        splits += [split_word(os.path.basename(str(tar)))] * len(sounds)
    if num_large:
        _log.warning(
            "%s: %d members beside sounds are larger than 1 MiB, unread", tars[0], num_large
        )
    columns = list(dict.fromkeys(name for row in rows for name in row))
    if not columns:
        return None
    table = {name: [row.get(name, "") for row in rows] for name in columns}
    named = find_column([name for name in columns if name not in (".cls", ".txt")], "label")
    for source in (".cls", named, ".txt"):
        if source in table:
            several = source in lists
            table = {"label": table.pop(source), **table}
            break
    else:
        several = False
    table = {name.replace(".txt", "text").replace(".cls", "cls"): v for name, v in table.items()}
    if any(splits):
        table["split"] = splits
    said: dict[str, Any] = {"multi_label": several, "label_separator": LABELS_BETWEEN}
    if "label" in table:
        said["label"] = "label"
    return table_of(table, said)


def _values(data: bytes, member: str, tar: Path | str) -> dict[str, Any]:
    """What one member says, by column; .cls and .txt under their endings."""
    try:
        text = data.decode("utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise ValueError(f"{member} in {tar} is not UTF-8 text") from error
    ending = os.path.splitext(member)[1].lower()
    if ending != ".json":
        return {ending: text}
    try:
        content = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{member} in {tar} is no valid JSON: {error}") from error
    return {str(k): v for k, v in content.items()} if isinstance(content, dict) else {}
