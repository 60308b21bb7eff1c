"""The settings of a config, one by one, each with its kind: what a resumed run does with another
value of it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple, cast

from hvdtrain.config.fields import KIND, Kind, Section
from hvdtrain.config.schema import Config


class Setting(NamedTuple):
    """One value of a config."""

    key: str
    """As on the command line, for example `phases.0.epochs`."""
    kind: Kind
    value: Any


def settings(cfg: Config) -> list[Setting]:
    """All settings of `cfg` in the order of the schema."""
    return list(_settings(cfg, ""))


def _settings(section: Section, prefix: str) -> Iterator[Setting]:
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        if isinstance(value, Section):
            yield from _settings(value, f"{prefix}{name}.")
        elif isinstance(value, list) and value and isinstance(value[0], Section):
            for index, item in enumerate(value):
                yield from _settings(item, f"{prefix}{name}.{index}.")
        else:
            extra = cast("dict[str, Any]", field.json_schema_extra)
            yield Setting(f"{prefix}{name}", extra[KIND], value)


def plain(value: Any, *, exact: bool = True) -> str:
    """A value as it is written in YAML; numbers with six digits, unless they are to be `exact`."""
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, float):
        short = f"{value:g}"
        return repr(value) if exact and float(short) != value else short
    if isinstance(value, list):
        return "[" + ", ".join(plain(item, exact=exact) for item in value) + "]"
    return str(value)
