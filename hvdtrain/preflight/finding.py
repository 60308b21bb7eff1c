"""A finding of the preflight: one line about a fault or a warning, and how it names hosts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from hvdtrain.errors import HvdtrainError
from hvdtrain.preflight.facts import Facts

SAME_CHECKOUT = "install the same on all hosts: the same checkout, and make setup in it"
"""The fix where versions of hvdtrain differ or it is missing."""


@dataclass(frozen=True)
class Finding:
    """One line: where, what the problem is, how to fix it."""

    name: str
    """Key of its row in docs/reference/preflight.md."""
    where: str
    problem: str
    fix: str
    error: type[HvdtrainError] | None = None
    """The error that a fault raises; None: a warning."""

    @property
    def is_fault(self) -> bool:
        """True if a run must not start; False for a warning."""
        return self.error is not None

    def __str__(self) -> str:
        return ": ".join(part for part in (self.where, self.problem, self.fix) if part)


def faults_first(findings: Iterable[Finding]) -> list[Finding]:
    """Faults before warnings, otherwise in the given order."""
    return sorted(findings, key=lambda finding: not finding.is_fault)


def raise_faults(findings: Iterable[Finding]) -> None:
    """Raise the first fault's error with one line for each fault; every rank must call."""
    faults = [finding for finding in findings if finding.is_fault]
    if faults and (kind := faults[0].error) is not None:
        error = kind("\n".join(map(str, faults)))
        error.everywhere = True
        raise error


def findings_text(findings: Iterable[Finding]) -> list[str]:
    """One line for each finding, marked as a fault or a note."""
    return [f"{'FAULT' if finding.is_fault else 'note '} {finding}" for finding in findings]


def as_dicts(findings: Iterable[Finding]) -> list[dict[str, object]]:
    """The findings for `doctor --json`."""
    return [
        {
            "name": finding.name,
            "fault": finding.is_fault,
            "where": finding.where,
            "found": finding.problem,
            "fix": finding.fix,
        }
        for finding in findings
    ]


class Names:
    """Names of ranks and hosts in findings: host names, with the address where names repeat."""

    def __init__(self, facts: Sequence[Facts]) -> None:
        machines: dict[str, set[str]] = {}
        for one in facts:
            machines.setdefault(one.host, set()).add(one.machine)
        self._repeated = {host for host, ids in machines.items() if len(ids) > 1}

    def host(self, one: Facts) -> str:
        """Name of the host."""
        if one.host in self._repeated and one.nic is not None:
            return f"{one.host} ({one.nic.address})"
        return one.host

    def rank(self, one: Facts) -> str:
        """Number and host of the rank; only the host if the facts are those of a host."""
        return self.host(one) if one.rank is None else f"rank {one.rank} on {self.host(one)}"

    def hosts(self, some: Iterable[Facts]) -> str:
        """The names of the hosts, each once, at most four."""
        names = list(dict.fromkeys(self.host(one) for one in some))
        more = f" and {len(names) - 4} more" if len(names) > 4 else ""
        return ", ".join(names[:4]) + more


def differ(values: Iterable[tuple[Facts, str | None]], names: Names) -> str | None:
    """Each value with its hosts; None if all known values are equal."""
    groups: dict[str, list[Facts]] = {}
    for one, text in values:
        if text:
            groups.setdefault(text, []).append(one)
    if len(groups) < 2:
        return None
    return "; ".join(f"{text} on {names.hosts(some)}" for text, some in groups.items())


def size_text(count: float) -> str:
    """A number of bytes in GB or MB."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def speed_text(mbit: float) -> str:
    """A speed in Gbit/s."""
    return f"{mbit / 1000:.2f} Gbit/s"
