"""`key=value` settings from the command line, applied to the data of a config file."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from hvdtrain.config.yaml_source import MAX_DEPTH, KeyPath, Source, parse_yaml
from hvdtrain.errors import ConfigError

_QUOTED = re.compile(r"""\s*(?:'.*'|".*")\s*""", re.DOTALL)
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_NULL = ("null", "~")
_CREDENTIALS = re.compile(r"(?<=://)[^@\s]*@")
_QUERY = re.compile(r"(://[^?#\s]*[?#])[^\s'\"]+")


def apply_override(
    source: Source,
    text: str,
    is_text: Callable[[KeyPath], bool],
    takes_number: Callable[[KeyPath], bool],
) -> None:
    """Apply one override such as `phases.0.epochs=3`; a number in the key is the index of a list.

    The value of a key that `is_text` is taken as it is typed, unless it is in quotes, or is a number
    and the key `takes_number`; every other value is YAML. Raises ConfigError for any other form, or if the list has no such item.
    """
    where = f"command line: {printable(text)}"
    key, equals, value = text.partition("=")
    parts = key.split(".")
    if re.search(r"\[\d*\]", key):
        fixed = re.sub(r"\[(\d*)\]", r".\1", key)
        raise ConfigError(
            f"{where}: an item of a list is written {printable(fixed)}{equals}{value}"
        )
    if not equals or not all(parts):
        raise ConfigError(f"{where}: expected key=value, for example train.precision=bf16")
    if len(parts) > MAX_DEPTH:
        raise ConfigError(f"{where}: a key of {len(parts)} parts; no field has more than 4")
    inner: Any = source.data
    path: KeyPath = ()
    for depth, part in enumerate(parts):
        step: str | int = part
        if isinstance(inner, list):
            if not (
                part.isascii() and part.isdigit() and len(part) < 10 and int(part) < len(inner)
            ):
                raise ConfigError(
                    f"{where}: {printable(part)}: expected a number from 0 to {len(inner) - 1}"
                )
            step = int(part)
        elif not isinstance(inner, dict):
            raise ConfigError(f"{where}: {'.'.join(parts[:depth])} has no keys")
        path = (*path, step)
        if depth == len(parts) - 1:
            if takes_number(path) and _NUMBER.fullmatch(value):
                inner[step] = float(value)
            else:
                inner[step] = _value(value, where, text=is_text(path))
            source.forget(path)
        elif isinstance(inner, dict):
            inner = inner.setdefault(part, {})
        else:
            inner = inner[step]
        source.marks.setdefault(path, where)
    source.marks[path] = where


def _value(value: str, where: str, *, text: bool) -> Any:
    if text and not _QUOTED.fullmatch(value):
        return None if value in _NULL else value
    try:
        return parse_yaml(f"value: {value}" if value else "value: ''", where).data["value"]
    except ConfigError as error:
        hint = ""
        if value.lstrip()[:1] in ("[", "{"):
            hint = (
                "; a value with blanks or commas is one word for the shell in quotes: 'KEY=[2, 9]'"
            )
        # The place within `value: …`, which nobody wrote, is of no use.
        message = re.sub(r":1:\d+: ", ": ", str(error), count=1)
        raise ConfigError(f"{message}{hint}") from None


def printable(text: object) -> str:
    """`text`, shortened, without what a URL in it has of users, passwords and keys, and with control
    characters written out that a terminal would obey."""
    whole = _QUERY.sub(r"\1…", _CREDENTIALS.sub("…@", str(text)))
    short = whole if len(whole) <= 80 else f"{whole[:77]}…"
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in short)
