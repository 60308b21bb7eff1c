"""Read a YAML file into a Config.

Unknown keys are refused. All faults are reported together, each as `file:line:col: key: message`.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from hvdtrain.config.overrides import apply_override, printable
from hvdtrain.config.schema import Config
from hvdtrain.config.suggestions import is_text, takes_number, unknown_key, wrong_value
from hvdtrain.config.yaml_source import KeyPath, Source, parse_yaml, read_yaml
from hvdtrain.errors import ConfigError


def load_config(path: str | Path, overrides: list[str] | None = None) -> Config:
    """Read `path` and the files it `extends:`, apply `key=value` overrides, and validate.

    Raises ConfigError with one line for every fault.
    """
    return _overridden(_read_extended(Path(path), ()), overrides)


def parse_config(text: str, name: str = "config", overrides: list[str] | None = None) -> Config:
    """Read a config from YAML text without `extends:`. Raises ConfigError like `load_config`."""
    return _overridden(parse_yaml(text, name), overrides)


def _overridden(source: Source, overrides: list[str] | None) -> Config:
    for override in overrides or []:
        apply_override(source, override, is_text, takes_number)
    return _validate(source)


MAX_EXTENDS = 32
MAX_MESSAGE = 500
"""Characters of what is said of one key: it may have the value in it."""


def _read_extended(path: Path, children: tuple[Path, ...]) -> Source:
    source = read_yaml(path)
    parent = source.data.pop("extends", None)
    if parent is None:
        return source
    where = source.marks.pop(("extends",))
    if not isinstance(parent, str):
        raise ConfigError(f"{where}: extends: expected the name of one YAML file")
    if len(children) >= MAX_EXTENDS:
        raise ConfigError(f"{where}: extends: more than {MAX_EXTENDS} files that extend each other")
    try:
        resolved = (path.parent / parent).resolve()
        found = resolved.is_file()
    except (OSError, ValueError):  # a name that is too long, or with a NUL in it
        raise ConfigError(f"{where}: extends: no file can have that name") from None
    if resolved in (*children, path.resolve()):
        raise ConfigError(f"{where}: extends: {parent} extends itself")
    if not found:
        raise ConfigError(f"{where}: extends: no such file: {resolved}")
    base = _read_extended(resolved, (*children, path.resolve()))
    base.merge(source)
    return base


def _validate(source: Source) -> Config:
    try:
        return Config.model_validate(source.data)
    except ValidationError as errors:
        raise ConfigError(*_explain(errors, source)) from None


EXPECTED = "Input should be "


def _explain(errors: ValidationError, source: Source) -> list[str]:
    """One line for each faulty key."""
    faults: dict[KeyPath, list[ErrorDetails]] = {}
    for error in errors.errors(include_url=False):
        faults.setdefault(_written_path(error["loc"], source.data), []).append(error)
    lines = []
    for path, found in faults.items():
        first = found[0]
        if first["type"] == "extra_forbidden":
            message = unknown_key(path)
        elif first["type"] == "missing":
            message = "required"
        else:
            message = wrong_value(path, first["type"], _alternatives(found), first["input"])
        key = ".".join(map(printable, path))
        where = f"{source.where(path)}: {key}" if key else source.where(path)
        short = message if len(message) <= MAX_MESSAGE else f"{message[: MAX_MESSAGE - 1]}…"
        lines.append(f"{where}: {short}")
    return lines


def _alternatives(found: list[ErrorDetails]) -> str:
    """What pydantic says of one value; of a value that may be of several kinds, what each of them expects."""
    first, *others = dict.fromkeys(error["msg"].partition(", unable to")[0] for error in found)
    if not first.startswith(EXPECTED):
        return first
    rest = [text.removeprefix(EXPECTED) for text in others if text.startswith(EXPECTED)]
    return " or ".join([first, *rest])


def _written_path(loc: tuple[Any, ...], data: Any) -> KeyPath:
    """The path of keys in the file: `loc` without the names that pydantic adds for unions."""
    path: KeyPath = ()
    for position, part in enumerate(loc):
        is_item = isinstance(data, list) and isinstance(part, int) and part < len(data)
        if is_item or (isinstance(data, dict) and part in data):
            data = data[part]
        elif not (isinstance(data, dict) and position == len(loc) - 1):
            continue
        path = (*path, part)
    return path


def config_hash(cfg: Config) -> str:
    """Twelve hex digits that are equal for configs with equal values."""
    return hashlib.sha256(cfg.model_dump_json().encode()).hexdigest()[:12]
