"""One line about what is wrong, and how ranks and hosts are called in it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from hvdtrain.errors import HvdtrainError
from hvdtrain.preflight.facts import Facts


@dataclass(frozen=True)
class Finding:
    """One line: where, what was found, what to do. `kind` names the error that it stops a run
    with; None: a warning."""

    name: str
    where: str
    found: str
    fix: str
    kind: type[HvdtrainError] | None = None

    def __str__(self) -> str:
        return ": ".join(part for part in (self.where, self.found, self.fix) if part)


def raise_faults(found: Iterable[Finding]) -> None:
    """Raise the first fault's error with the lines of all faults; to be called by every rank."""
    faults = [finding for finding in found if finding.kind is not None]
    if faults and (kind := faults[0].kind) is not None:
        error = kind("\n".join(map(str, faults)))
        error.everywhere = True
        raise error


def findings_text(found: Iterable[Finding]) -> list[str]:
    """A line for each, faults marked."""
    return [f"{'FAULT' if finding.kind else 'note '} {finding}" for finding in found]


def as_dicts(found: Iterable[Finding]) -> list[dict[str, object]]:
    """The same for a program."""
    return [
        {
            "name": one.name,
            "fault": one.kind is not None,
            "where": one.where,
            "found": one.found,
            "fix": one.fix,
        }
        for one in found
    ]


class Names:
    """How ranks and hosts are called: by host name, and by address where host names repeat."""

    def __init__(self, facts: Sequence[Facts]) -> None:
        machines: dict[str, set[str]] = {}
        for one in facts:
            machines.setdefault(one.host, set()).add(one.machine)
        self._repeated = {host for host, ids in machines.items() if len(ids) > 1}

    def host(self, one: Facts) -> str:
        """Its name alone."""
        if one.host in self._repeated and one.nic is not None:
            return f"{one.host} ({one.nic.address})"
        return one.host

    def rank(self, one: Facts) -> str:
        """Rank and host."""
        return self.host(one) if one.rank is None else f"rank {one.rank} on {self.host(one)}"

    def hosts(self, some: Iterable[Facts]) -> str:
        """Each once, the first few by name."""
        names = list(dict.fromkeys(self.host(one) for one in some))
        more = f" and {len(names) - 4} more" if len(names) > 4 else ""
        return ", ".join(names[:4]) + more


def differ(values: Iterable[tuple[Facts, str | None]], names: Names) -> str | None:
    """None where all known values are the same, else each value with its hosts."""
    groups: dict[str, list[Facts]] = {}
    for one, text in values:
        if text:
            groups.setdefault(text, []).append(one)
    if len(groups) < 2:
        return None
    return "; ".join(f"{text} on {names.hosts(some)}" for text, some in groups.items())


def size_text(count: float) -> str:
    """Bytes for a person."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def speed_text(mbit: float) -> str:
    """Mbit/s for a person."""
    return f"{mbit / 1000:.2f} Gbit/s"
