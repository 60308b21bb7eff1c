"""Check all hosts by ssh before a launch: are they up, does ssh work, do they have the same files?

All hosts are asked at the same time, so a host that could never join is found in seconds.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hvdtrain.errors import CommError, ConfigError
from hvdtrain.launch.hosts import Host
from hvdtrain.preflight.facts import Facts, of_host
from hvdtrain.preflight.finding import (
    SAME_CHECKOUT,
    Finding,
    as_dicts,
    faults_first,
    findings_text,
    raise_faults,
)
from hvdtrain.preflight.judge import judge

CONNECT_S = 5
ANSWER_S = 60
MAX_CONNECTIONS = 64

REFUSALS = (
    ("could not resolve", "the name is unknown", "fix the name, or add it to DNS or /etc/hosts"),
    ("timed out", "no answer to ssh", "is the host up, and does its firewall allow ssh?"),
    ("no route to host", "the host is down", "start it, or remove it from --hosts"),
    ("network is unreachable", "no route to it", "connect this host to its network"),
    ("connection refused", "the host is up, but no sshd listens", "start sshd there"),
    ("host key verification failed", "its host key is unknown or has changed", "check it, then"
     " add it to known_hosts: ssh-keyscan HOST >> ~/.ssh/known_hosts"),
    ("permission denied", "ssh wants a password, or refuses the key", "ssh-copy-id HOST"),
)  # fmt: skip
"""Part of ssh's message, what it means, how to fix it."""


@dataclass(frozen=True)
class HostQuery:
    """The question to every host: the config to load, or the network to look for."""

    config: str | None = None
    overrides: list[str] = field(default_factory=list)
    interface: str = "auto"
    """The `comm.interface` to use without a config."""


@dataclass(frozen=True)
class HostsReport:
    """What was found on all hosts."""

    findings: list[Finding]
    facts: dict[str, Facts]
    """By the host's name in --hosts; hosts that did not answer are missing."""

    @property
    def ok(self) -> bool:
        """No fault; warnings do not count."""
        return not any(finding.is_fault for finding in self.findings)

    def as_dict(self) -> dict[str, Any]:
        """For `doctor --json`."""
        facts = {name: dataclasses.asdict(one) for name, one in self.facts.items()}
        return {"ok": self.ok, "findings": as_dicts(self.findings), "facts": facts}


def check_hosts(hosts: Sequence[Host], query: HostQuery) -> HostsReport:
    """Ask all hosts, and compare their answers with each other and with this host's versions."""
    names = [host.name for host in hosts]
    with ThreadPoolExecutor(min(MAX_CONNECTIONS, len(hosts))) as pool:
        answers = list(pool.map(lambda name: _ask(name, query, names), names))
    findings = [answer for answer in answers if isinstance(answer, Finding)]
    facts = {answer.host: answer for answer in answers if isinstance(answer, Facts)}
    for host in hosts:
        if host.name in facts:
            findings += _slots(host, facts)
    if facts:
        request = dataclasses.asdict(query) | {"peers": [], "first": False, "listing": False}
        here = dataclasses.replace(of_host(request), clock=0.0)
        listed = here.machine in {one.machine for one in facts.values()}
        findings += judge([*([] if listed else [here]), *facts.values()])
    return HostsReport(faults_first(findings), facts)


def require_hosts(hosts: Sequence[Host], query: HostQuery) -> None:
    """Raise the first fault's error with one line for each fault.

    Warnings are not shown: the run finds them again.
    """
    raise_faults(check_hosts(hosts, query).findings)


def _ask(name: str, query: HostQuery, names: Sequence[str]) -> Facts | Finding:
    """The facts of a host. `clock` is the difference to this host's clock."""
    request = dataclasses.asdict(query) | {
        "peers": [other for other in names if other != name],
        "first": name == names[0],
        "listing": True,
    }
    python = [sys.executable, "-m", "hvdtrain.preflight.facts", json.dumps(request)]
    path = [f"PYTHONPATH={os.environ['PYTHONPATH']}"] if "PYTHONPATH" in os.environ else []
    command = f"cd {shlex.quote(str(Path.cwd()))} && exec {shlex.join(['env', *path, *python])}"
    options = ["-o", "BatchMode=yes", "-o", f"ConnectTimeout={CONNECT_S}", "-o", "LogLevel=ERROR"]
    try:
        done = subprocess.run(
            ["ssh", *options, "--", name, command],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=ANSWER_S,
            check=False,
        )
    except FileNotFoundError:
        raise CommError("ssh is not installed here: apt-get install openssh-client") from None
    except subprocess.TimeoutExpired:
        text = f"ssh works, but hvdtrain does not answer within {ANSWER_S} s"
        return Finding("ssh", name, text, "does a disk hang there? Run df there", CommError)
    received = time.time()
    try:
        facts = Facts.from_json(done.stdout.strip().split("\n")[-1])
    except (ValueError, KeyError, TypeError):
        return refusal(name, done.returncode, done.stderr)
    return dataclasses.replace(facts, host=name, clock=facts.clock - received)


def refusal(name: str, code: int, stderr: str) -> Finding:
    """What a failed ssh means, by its exit code and its message."""
    message = " ".join(stderr.split())
    if code == 255:
        for sign, meaning, fix in REFUSALS:
            if sign in message.lower():
                return Finding("ssh", name, meaning, fix.replace("HOST", name), CommError)
        return Finding("ssh", name, f"ssh: {message}", f"try ssh {name} true", CommError)
    if code in (126, 127):
        fix = "run make setup in the same folder there, or mount this host's folder"
        return Finding("python", name, f"no {sys.executable} there", fix, CommError)
    if "cd:" in message:
        fix = "the checkout and the run directory must be at the same path on all hosts"
        return Finding("folder", name, f"no folder {Path.cwd()} there", fix, CommError)
    if code == 0 or "No module named" in message:
        text = "hvdtrain is missing there, or is another version"
        return Finding("version", name, text, SAME_CHECKOUT, CommError)
    last_line = stderr.strip().split("\n")[-1]
    return Finding("host", name, f"hvdtrain fails there: {last_line}", "fix it there", CommError)


def _slots(host: Host, facts: Mapping[str, Facts]) -> Iterator[Finding]:
    one = facts[host.name]
    if one.visible_gpus and host.slots > one.visible_gpus:
        text = f"{host.slots} ranks for {one.visible_gpus} GPUs"
        fix = f"write {host.name}:{one.visible_gpus}"
        yield Finding("gpu", host.name, text, fix, ConfigError)
    first = next(name for name, other in facts.items() if other.machine == one.machine)
    if first != host.name:
        fix = "name it once, with all slots"
        yield Finding("local rank", host.name, f"is the same machine as {first}", fix, CommError)


def hosts_text(report: HostsReport) -> str:
    """One line for every host that answered, then the findings."""
    lines = []
    for name, one in report.facts.items():
        gpus = f", {one.visible_gpus} GPUs" if one.visible_gpus else ""
        card = f"{one.nic.name} {one.nic.address}, MTU {one.nic.mtu}" if one.nic else "no network"
        lines.append(f"ok    {name}: {card}{gpus}, hvdtrain {one.versions['hvdtrain']}")
    return "\n".join(lines + findings_text(report.findings))
