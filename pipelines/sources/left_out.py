"""What a source passed over and why: every file or member that is no sample is counted and named."""

from __future__ import annotations

import os
from dataclasses import dataclass, field

_NAMED = 3  # examples kept for each reason


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
        self.counts[reason] = self.counts.get(reason, 0) + count
        names = self.first.setdefault(reason, [])
        if len(names) < _NAMED:
            names.append(os.fsdecode(name))

    def merge(self, other: LeftOut) -> None:
        """Count what `other` has as well; its names come after those that are known."""
        for reason, count in other.counts.items():
            self.counts[reason] = self.counts.get(reason, 0) + count
            names = self.first.setdefault(reason, [])
            names += other.first.get(reason, [])[: _NAMED - len(names)]

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


def printable(name: str) -> str:
    r"""`name` for a line of text: bytes that are no UTF-8 and control characters as `\udce9`, `\n`."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in name)
