"""What a source passed over and why: every file or member that is no sample is counted and named."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field

_NAMED = 3  # examples kept for each reason
_REASONS = 32  # more are counted as "other": any file may bring a new extension


@dataclass
class LeftOut:
    """What is in a dataset but not among its samples. Empty (and false) if all of it is."""

    counts: dict[str, int] = field(default_factory=dict)
    """How many, by the reason: `.gif`, `hidden`, `links`, …"""
    first: dict[str, list[str]] = field(default_factory=dict)
    """The names of the first few, by the same reasons."""

    def __bool__(self) -> bool:
        return bool(self.counts)

    def add(self, reason: str, name: str | bytes, count: int = 1) -> None:
        """Count `count` more for `reason`; `name` is the first of them."""
        self._add(reason, count, [os.fsdecode(name)])

    def take_back(self, reason: str, name: str) -> None:
        """Undo one `add`, if it was counted under `reason`."""
        if self.counts.get(reason, 0) > 1:
            self.counts[reason] -= 1
        else:
            self.counts.pop(reason, None)
        if name in self.first.get(reason, []):
            self.first[reason].remove(name)

    def merge(self, other: LeftOut) -> None:
        """Count what `other` has as well; its names come after those that are known."""
        for reason, count in other.counts.items():
            self._add(reason, count, other.first.get(reason, []))

    def _add(self, reason: str, count: int, names: list[str]) -> None:
        if reason not in self.counts and len(self.counts) >= _REASONS:
            reason = "other"
        self.counts[reason] = self.counts.get(reason, 0) + count
        known = self.first.setdefault(reason, [])
        known += names[: _NAMED - len(known)]

    def text(self) -> str:
        """One line, such as `left out: .gif 5, links 2 (first: a/b.gif)`; empty if nothing was."""
        if not self.counts:
            return ""
        reasons = sorted(self.counts, key=lambda reason: (-self.counts[reason], reason))
        counted = ", ".join(f"{printable(reason)} {self.counts[reason]:,}" for reason in reasons)
        name = next((self.first[reason][0] for reason in reasons if self.first.get(reason)), "")
        return f"left out: {counted}" + (f" (first: {printable(name)})" if name else "")


def left_out_of(source: object) -> LeftOut:
    """What `source` left out; nothing for a source that does not leave out anything."""
    found = getattr(source, "left_out", None)
    return found if isinstance(found, LeftOut) else LeftOut()


def left_out_lines(sources: Mapping[str, object]) -> list[str]:
    """One line for each of the datasets `data.KEY` that left something out."""
    found = {key: left_out_of(source) for key, source in sources.items()}
    return [f"data.{key}: {left.text()}" for key, left in found.items() if left]


def printable(name: str) -> str:
    r"""`name` for a line of text: bytes that are no UTF-8 and control characters as `\udce9`, `\n`."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in name)
