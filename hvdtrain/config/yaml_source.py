"""Read YAML with the position of every value, and by the rules of YAML 1.2 for plain words.

By itself PyYAML reads `1e-3` as text, `on` as True and `010` as 8, and a repeated key silently
replaces the first. Here only `true/false`, `null/~`, decimal integers and floats are special.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from hvdtrain.errors import ConfigError

KeyPath = tuple[str | int, ...]

_NULL = re.compile(r"^(?:~|null|Null|NULL|)$")
_BOOL = re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$")
_INT = re.compile(r"^[-+]?[0-9][0-9_]*$")
_FLOAT = re.compile(r"^[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?$")
_SPECIAL_FLOAT = re.compile(r"^[-+]?\.(?:inf|Inf|INF)$|^\.(?:nan|NaN|NAN)$")


class _PlainLoader(yaml.SafeLoader):
    """SafeLoader that leaves all plain words as text; `_scalar` resolves them."""

    yaml_implicit_resolvers: dict[str, Any] = {}


@dataclass
class Source:
    """Plain data, and for each key path in it the `file:line:col` where it was written."""

    data: dict[str, Any] = field(default_factory=dict)
    marks: dict[KeyPath, str] = field(default_factory=dict)

    def where(self, path: KeyPath) -> str:
        """The position of `path`, or of its nearest parent in the file."""
        for end in range(len(path), -1, -1):
            if path[:end] in self.marks:
                return self.marks[path[:end]]
        return "config"

    def merge(self, other: Source) -> None:
        """Apply `other`: mappings are merged key by key, everything else is replaced."""
        self.data = self._merged(self.data, other.data, ())
        self.marks.update(other.marks)

    def forget(self, path: KeyPath) -> None:
        """Drop the positions of `path` and all below it, whose values were replaced."""
        for stale in [p for p in self.marks if p[: len(path)] == path]:
            del self.marks[stale]

    def _merged(self, base: Any, over: Any, path: KeyPath) -> Any:
        if isinstance(base, dict) and isinstance(over, dict):
            merged = {**base, **over}
            for key in base.keys() & over.keys():
                merged[key] = self._merged(base[key], over[key], (*path, key))
            return merged
        self.forget(path)
        return over


def read_yaml(path: Path) -> Source:
    """Read one YAML file. Raises ConfigError with `file:line:col` unless it is a valid mapping."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: cannot read the config: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text (byte {error.start})") from None
    return parse_yaml(text, str(path))


def parse_yaml(text: str, name: str) -> Source:
    """Parse YAML text; `name` is the file name in messages."""
    try:
        node = yaml.compose(text, Loader=_PlainLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{name}:{mark.line + 1}:{mark.column + 1}" if mark else name
        raise ConfigError(f"{place}: not valid YAML: {error.problem or error.context}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{name}: not valid YAML: {' '.join(str(error).split())}") from None
    source = Source(marks={(): f"{name}:1:1"})
    if node is None:
        return source
    if not isinstance(node, yaml.MappingNode):
        raise ConfigError(f"{_place(node, name)}: expected `key: value` pairs at the top level")
    problems: list[str] = []
    source.data = _construct(node, (), name, source.marks, problems, frozenset())
    if problems:
        raise ConfigError(*problems)
    return source


def apply_override(source: Source, text: str) -> None:
    """Apply one override such as `phases.0.epochs=3`; a number in the key is the index of a list.

    Raises ConfigError for any other form, or if the list has no such item.
    """
    where = f"command line: {text}"
    key, equals, value = text.partition("=")
    parts = key.split(".")
    if not equals or not all(parts):
        raise ConfigError(f"{where}: expected key=value, for example train.precision=bf16")
    parsed = parse_yaml(f"value: {value}" if value else "value: ''", where).data["value"]
    inner: Any = source.data
    path: KeyPath = ()
    for depth, part in enumerate(parts):
        step: str | int = part
        if isinstance(inner, list):
            if not (part.isdigit() and int(part) < len(inner)):
                raise ConfigError(f"{where}: {part}: expected a number from 0 to {len(inner) - 1}")
            step = int(part)
        elif not isinstance(inner, dict):
            raise ConfigError(f"{where}: {'.'.join(parts[:depth])} has no keys")
        path = (*path, step)
        if depth == len(parts) - 1:
            inner[step] = parsed
            source.forget(path)
        elif isinstance(inner, dict):
            inner = inner.setdefault(part, {})
        else:
            inner = inner[step]
        source.marks.setdefault(path, where)
    source.marks[path] = where


def _construct(
    node: yaml.Node,
    path: KeyPath,
    name: str,
    marks: dict[KeyPath, str],
    problems: list[str],
    parents: frozenset[int],
) -> Any:
    marks[path] = marks.get(path) or _place(node, name)
    if id(node) in parents:
        problems.append(f"{_place(node, name)}: an anchor must not contain itself")
        return None
    parents |= {id(node)}
    if isinstance(node, yaml.ScalarNode):
        return _scalar(node, name, problems)
    if isinstance(node, yaml.SequenceNode):
        return [
            _construct(item, (*path, i), name, marks, problems, parents)
            for i, item in enumerate(node.value)
        ]
    result: dict[str, Any] = {}
    for key_node, value_node in node.value:
        key = key_node.value
        if not isinstance(key, str):
            problems.append(f"{_place(key_node, name)}: a key must be a word")
            continue
        inner: KeyPath = (*path, key)
        if key in result:
            first = marks[inner].rsplit(":", 2)[1]
            problems.append(f"{_place(key_node, name)}: {key}: repeated (first on line {first})")
            continue
        marks[inner] = _place(key_node, name)
        result[key] = _construct(value_node, inner, name, marks, problems, parents)
    return result


def _scalar(node: yaml.ScalarNode, name: str, problems: list[str]) -> Any:
    if node.tag not in ("tag:yaml.org,2002:str", "!"):
        problems.append(f"{_place(node, name)}: tags such as {node.tag} are not allowed")
        return None
    text: str = node.value
    if node.style is not None:  # quoted or block text stays text
        return text
    if _NULL.match(text):
        return None
    if _BOOL.match(text):
        return text.lower() == "true"
    if _INT.match(text):
        return int(text.replace("_", ""))
    if _FLOAT.match(text):
        return float(text)
    if _SPECIAL_FLOAT.match(text):
        return float(text.replace(".", "", 1))
    return text


def _place(node: yaml.Node, name: str) -> str:
    return f"{name}:{node.start_mark.line + 1}:{node.start_mark.column + 1}"
