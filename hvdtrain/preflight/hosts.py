"""Before a launch: is every host there, does ssh let us in, and does it have the same of all?

Asked over ssh, of all hosts at once, so that a rank that could never join is told in seconds.
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
from hvdtrain.preflight.finding import Finding, as_dicts, findings_text, raise_faults
from hvdtrain.preflight.judge import judge

CONNECT_S = 5
ANSWER_S = 60
AT_ONCE = 64

REFUSALS = (
    ("could not resolve", "the name is unknown", "fix the name, or add it to DNS or /etc/hosts"),
    ("timed out", "no answer to ssh", "is the host up, and the firewall open for ssh?"),
    ("no route to host", "the host is down", "start it, or leave it out of --hosts"),
    ("network is unreachable", "no route to it", "connect this host to its network"),
    ("connection refused", "the host is up, but no sshd listens", "start sshd there"),
    ("host key verification failed", "its host key is unknown or has changed", "compare it, then"
     " add it to known_hosts: ssh-keyscan HOST >> ~/.ssh/known_hosts"),
    ("permission denied", "ssh wants a password, or refuses the key", "ssh-copy-id HOST"),
)  # fmt: skip
"""What ssh says, what it means and what fixes it."""


@dataclass(frozen=True)
class HostQuery:
    """What to ask of every host."""

    config: str | None = None
    overrides: list[str] = field(default_factory=list)
    interface: str = "auto"
    """The `comm.interface` to try where there is no config."""


@dataclass(frozen=True)
class HostsReport:
    """What was found on all hosts."""

    findings: list[Finding]
    facts: dict[str, Facts]
    """By the name of the host in --hosts; without those that did not answer."""

    @property
    def ok(self) -> bool:
        """No fault; warnings do not count."""
        return all(finding.kind is None for finding in self.findings)

    def as_dict(self) -> dict[str, Any]:
        """For `doctor --json`."""
        facts = {name: dataclasses.asdict(one) for name, one in self.facts.items()}
        return {"ok": self.ok, "findings": as_dicts(self.findings), "facts": facts}


def check_hosts(hosts: Sequence[Host], request: HostQuery) -> HostsReport:
    """Ask all hosts, and lay what they say side by side, and beside this host's versions."""
    names = [host.name for host in hosts]
    with ThreadPoolExecutor(min(AT_ONCE, len(hosts))) as pool:
        answers = list(pool.map(lambda name: _ask(name, request, names), names))
    findings = [answer for answer in answers if isinstance(answer, Finding)]
    facts = {answer.host: answer for answer in answers if isinstance(answer, Facts)}
    for host in hosts:
        if host.name in facts:
            findings += _slots(host, facts)
    asked = dataclasses.asdict(request) | {"peers": [], "first": False, "listing": False}
    here = dataclasses.replace(of_host(asked), clock=0.0)
    among = [here] if here.machine not in {one.machine for one in facts.values()} else []
    findings += judge([*among, *facts.values()]) if facts else []
    return HostsReport(sorted(findings, key=lambda finding: finding.kind is None), facts)


def require_hosts(hosts: Sequence[Host], request: HostQuery) -> None:
    """Before a launch: raise the first fault's error, with a line for each; warnings are left to
    the run, which finds them again."""
    raise_faults(check_hosts(hosts, request).findings)


def _ask(name: str, request: HostQuery, names: Sequence[str]) -> Facts | Finding:
    """The facts of a host; its clock is what it is ahead of this host's."""
    asked = dataclasses.asdict(request) | {
        "peers": [other for other in names if other != name],
        "first": name == names[0],
        "listing": True,
    }
    python = [sys.executable, "-m", "hvdtrain.preflight.facts", json.dumps(asked)]
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
        text = f"ssh gets in, but hvdtrain does not answer within {ANSWER_S} s"
        return Finding("ssh", name, text, "does a disk hang there? Try df on it", CommError)
    received = time.time()
    try:
        facts = Facts.from_json(done.stdout.strip().split("\n")[-1])
    except (ValueError, KeyError, TypeError):
        return refusal(name, done.returncode, done.stderr)
    return dataclasses.replace(facts, host=name, clock=facts.clock - received)


def refusal(name: str, code: int, stderr: str) -> Finding:
    """What a failed ssh means, by its exit code and what it said."""
    said = " ".join(stderr.split())
    if code == 255:
        for sign, meaning, fix in REFUSALS:
            if sign in said.lower():
                return Finding("ssh", name, meaning, fix.replace("HOST", name), CommError)
        return Finding("ssh", name, f"ssh: {said}", f"try ssh {name} true", CommError)
    if code in (126, 127):
        fix = "make setup in the same folder there, or mount the one of this host"
        return Finding("python", name, f"no {sys.executable} there", fix, CommError)
    if "cd:" in said:
        fix = "the checkout and the run directory must be at the same path on all hosts"
        return Finding("folder", name, f"no folder {Path.cwd()} there", fix, CommError)
    if code == 0 or "No module named" in said:
        fix = "install the same on all hosts: the same checkout, and make setup in it"
        text = "hvdtrain is missing there, or another version that cannot answer"
        return Finding("version", name, text, fix, CommError)
    last = stderr.strip().split("\n")[-1]
    return Finding("host", name, f"hvdtrain fails there: {last}", "fix it there", CommError)


def _slots(host: Host, facts: Mapping[str, Facts]) -> Iterator[Finding]:
    one = facts[host.name]
    if one.visible_gpus and host.slots > one.visible_gpus:
        text = f"{host.slots} ranks for {one.visible_gpus} GPUs"
        fix = f"name it as {host.name}:{one.visible_gpus}"
        yield Finding("gpu", host.name, text, fix, ConfigError)
    first = next(name for name, other in facts.items() if other.machine == one.machine)
    if first != host.name:
        fix = "name it once, with all its slots"
        yield Finding("local rank", host.name, f"is the same machine as {first}", fix, CommError)


def hosts_text(report: HostsReport) -> str:
    """Lines for a person: every host that answered, then what was found."""
    lines = []
    for name, one in report.facts.items():
        gpus = f", {one.visible_gpus} GPUs" if one.visible_gpus else ""
        card = f"{one.nic.name} {one.nic.address}, MTU {one.nic.mtu}" if one.nic else "no network"
        lines.append(f"ok    {name}: {card}{gpus}, hvdtrain {one.versions['hvdtrain']}")
    return "\n".join(lines + findings_text(report.findings))
