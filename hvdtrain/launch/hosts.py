"""The hosts of a job as a user writes them: `a:4,b:4`, or a hostfile."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from hvdtrain.errors import ConfigError

NAME = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_])?$")
"""Host names and IPv4 addresses; ssh cannot take any of them for an option."""


MOST_SLOTS = 4096
"""Of one host: more than any has cores."""
MOST_HOSTS = 16384


@dataclass(frozen=True)
class Host:
    """One machine and the number of ranks on it."""

    name: str
    slots: int

    def __str__(self) -> str:
        return f"{self.name}:{self.slots}"


def given_hosts(hosts: str | None, hostfile: Path | None) -> list[Host]:
    """The hosts of --hosts or of --hostfile; raises ConfigError unless exactly one is given."""
    if hosts is not None and hostfile is None:
        return parse_hosts(hosts)
    if hostfile is not None and hosts is None:
        return read_hostfile(hostfile)
    raise ConfigError("launch: give --hosts a:4,b:4 or --hostfile FILE, or run it in a Slurm job")


def parse_hosts(text: str) -> list[Host]:
    """Parse `a:4,b:4`; a name without a number has one slot. Raises ConfigError."""
    where = f"--hosts {shown(text)}"
    return _distinct([_host(item.strip(), where) for item in text.split(",")], where)


def read_hostfile(path: Path) -> list[Host]:
    """Read one host per line, `a slots=4` (Open MPI) or `a:4`; `#` starts a comment.

    Raises ConfigError.
    """
    try:
        content = path.read_bytes() if path.is_file() or not path.exists() else None
    except OSError as error:
        raise ConfigError(f"--hostfile {path}: cannot be read: {error.strerror}") from None
    if content is None:
        raise ConfigError(f"--hostfile {path}: not a regular file")
    lines = content.decode("utf-8-sig", "surrogateescape").splitlines()
    hosts = []
    for number, line in enumerate(lines, 1):
        if text := line.partition("#")[0].strip():
            host = re.sub(r"\s+slots\s*=\s*", ":", text)
            hosts.append(_host(host, f"{path}:{number}"))
    if not hosts:
        raise ConfigError(f"--hostfile {path}: names no host; write one per line: name slots=4")
    return _distinct(hosts, str(path))


def shown(text: str) -> str:
    """The begin of `text`, with control characters written out that a terminal would obey."""
    short = text if len(text) <= 80 else f"{text[:77]}…"
    return repr(short)[1:-1]


def _host(text: str, where: str) -> Host:
    name, colon, slots = text.partition(":")
    if not NAME.match(name):
        raise ConfigError(f"{where}: expected NAME:SLOTS, found '{shown(text)}'")
    if colon and not (re.fullmatch("[0-9]{1,9}", slots) and 0 < int(slots) <= MOST_SLOTS):
        raise ConfigError(
            f"{where}: slots of {shown(name)}: expected a number from 1 to {MOST_SLOTS}, found "
            f"'{shown(slots)}'"
        )
    return Host(name, int(slots) if colon else 1)


def _distinct(hosts: Iterable[Host], where: str) -> list[Host]:
    by_name: dict[str, Host] = {}
    for host in hosts:
        if host.name in by_name:
            raise ConfigError(
                f"{where}: {shown(host.name)} is named twice: name it once, with all slots"
            )
        by_name[host.name] = host
    return list(by_name.values())
