"""Read YAML with the position of every value, and by the rules of YAML 1.2 for plain words.

By itself PyYAML reads `1e-3` as text, `on` as True and `010` as 8, and a repeated key silently
replaces the first. Here only `true/false`, `null/~`, decimal integers and floats are special.
Size, depth and number of values are bounded, so no file makes the reader run for ever.
"""

from __future__ import annotations

import os
import re
import stat
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


MAX_BYTES = 2**20
MAX_DEPTH = 32
"""Lists and mappings inside each other."""
MAX_VALUES = 100_000
"""Values of a file, where an alias counts as all that it stands for."""
MAX_DIGITS = 40
"""Of a whole number: more than any field needs, and far below what Python refuses to convert."""


class _PlainLoader(yaml.SafeLoader):
    """SafeLoader that leaves all plain words as text, which `_scalar` resolves, and that refuses
    more than MAX_DEPTH levels."""

    yaml_implicit_resolvers: dict[str, Any] = {}
    _depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        """Compose one node and all nodes in it."""
        self._depth += 1
        if self._depth > MAX_DEPTH:
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise yaml.MarkedYAMLError(
                problem=f"more than {MAX_DEPTH} levels inside each other", problem_mark=mark
            )
        try:
            return super().compose_node(parent, index)
        finally:
            self._depth -= 1


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
        # O_NONBLOCK: opening a named pipe must not wait for its other end.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                kind = "a folder" if path.is_dir() else "not a regular file"
                raise ConfigError(f"{path}: {kind}: expected the YAML file of a run")
            content = file.read(MAX_BYTES + 1)
        text = content.decode("utf-8-sig")
    except OSError as error:
        raise ConfigError(f"{path}: cannot read the config: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text (byte {error.start})") from None
    return parse_yaml(text, str(path))


def parse_yaml(text: str, name: str) -> Source:
    """Parse YAML text; `name` is the file name in messages. Raises ConfigError."""
    if len(text) > MAX_BYTES:
        raise ConfigError(f"{name}: longer than {MAX_BYTES >> 20} MiB: this is no config of a run")
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
    source.data = _Reader(name, source.marks, problems).read(node, (), frozenset())
    if problems:
        raise ConfigError(*problems)
    return source


class _Reader:
    """Turns the nodes of one file into plain data, and notes where each value was written."""

    def __init__(self, name: str, marks: dict[KeyPath, str], problems: list[str]) -> None:
        self._name, self._marks, self._problems = name, marks, problems
        self._values = 0

    def read(self, node: yaml.Node, path: KeyPath, parents: frozenset[int]) -> Any:
        """The data of `node`, which is at `path` and inside of `parents` (ids of nodes)."""
        self._values += 1
        place = _place(node, self._name)
        if self._values > MAX_VALUES:
            raise ConfigError(f"{place}: more than {MAX_VALUES:,} values: do aliases multiply?")
        self._marks.setdefault(path, place)
        if id(node) in parents:
            self._problems.append(f"{place}: an anchor must not contain itself")
            return None
        parents |= {id(node)}
        if isinstance(node, yaml.ScalarNode):
            return _scalar(node, self._name, self._problems)
        if isinstance(node, yaml.SequenceNode):
            return [self.read(item, (*path, i), parents) for i, item in enumerate(node.value)]
        return self._mapping(node, path, parents)

    def _mapping(self, node: yaml.Node, path: KeyPath, parents: frozenset[int]) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key, place = key_node.value, _place(key_node, self._name)
            if not isinstance(key, str):
                self._problems.append(f"{place}: a key must be a word")
                continue
            inner: KeyPath = (*path, key)
            if key in result:
                first = self._marks[inner].rsplit(":", 2)[1]
                self._problems.append(f"{place}: {key}: repeated (first on line {first})")
                continue
            self._marks[inner] = place
            result[key] = self.read(value_node, inner, parents)
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
        if len(text) > MAX_DIGITS:
            problems.append(
                f"{_place(node, name)}: a number of {len(text)} digits; none has more than {MAX_DIGITS}"
            )
            return None
        return int(text.replace("_", ""))
    if _FLOAT.match(text):
        return float(text)
    if _SPECIAL_FLOAT.match(text):
        return float(text.replace(".", "", 1))
    return text


def _place(node: yaml.Node, name: str) -> str:
    return f"{name}:{node.start_mark.line + 1}:{node.start_mark.column + 1}"
