"""Processes in their own Linux namespaces: start them, run commands in them, end them."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

TOOLS = {
    "ip": "iproute2",
    "tc": "iproute2",
    "unshare": "util-linux",
    "nsenter": "util-linux",
    "setpriv": "util-linux",
    "taskset": "util-linux",
    "sshd": "openssh-server",
    "ssh": "openssh-client",
    "ssh-keygen": "openssh-client",
}
"""Programs that a lab needs, and the Debian package of each."""


SYSTEM_PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"


class LabError(Exception):
    """A lab cannot be made or used here; the message is one line."""


def why_not() -> str | None:
    """Why a lab cannot be made on this machine, in one line; None if it can."""
    if not sys.platform.startswith("linux"):
        return "netlab: needs Linux for its network namespaces"
    if os.geteuid() != 0:
        return "netlab: needs root to make network namespaces: run it with sudo"
    missing = [tool for tool in TOOLS if shutil.which(tool, path=SYSTEM_PATH) is None]
    if missing:
        packages = " ".join(sorted({TOOLS[tool] for tool in missing}))
        return f"netlab: {', '.join(missing)} not found: apt-get install {packages}"
    return None


def hold(
    command: Sequence[str], log: Path, *, keep: bool, cores: str | None = None
) -> subprocess.Popen[bytes]:
    """Start a command as process 1 of its own network, host name, mount and process namespaces.

    `log`: file for its standard error. `cores`: a list for taskset. `keep`: it outlives this
    process.
    """
    bound = ["taskset", "--cpu-list", cores] if cores else []
    spaces = ["--net", "--uts", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
    mortal = [] if keep else ["setpriv", "--pdeathsig", "KILL", "--"]
    with log.open("wb") as file:
        return subprocess.Popen(
            [*mortal, *bound, "unshare", *spaces, "--", *command],
            env={**os.environ, "PATH": SYSTEM_PATH},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=file,
            start_new_session=True,
        )


def in_network(pid: int, command: str, *, check: bool = True) -> None:
    """Run a command in the network of a process; raises LabError if it fails."""
    words = ["nsenter", f"--net=/proc/{pid}/ns/net", *command.split()]
    env = {**os.environ, "PATH": SYSTEM_PATH}
    done = subprocess.run(words, env=env, capture_output=True, text=True, check=False)
    if check and done.returncode != 0:
        raise LabError(f"netlab: {command}: {' '.join(done.stderr.split())}")


def assign_cores(cores: Sequence[int], shares: int, hosts: int) -> list[str]:
    """Cores of each host as a list for taskset: every `shares`-th core, at least one."""
    lists = [cores[k % len(cores) :: shares] for k in range(shares)]
    return [",".join(map(str, lists[k % shares])) for k in range(hosts)]


def network_of(pid: int) -> Path | None:
    """The network namespace of a process; None if it has ended."""
    try:
        return Path(f"/proc/{pid}/ns/net").readlink()
    except OSError:
        return None


def alive(pid: int) -> bool:
    """Whether the process exists."""
    return Path(f"/proc/{pid}").exists()


def kill(pid: int, folder: Path) -> None:
    """Kill a process that holds namespaces of the lab; the kernel then ends all processes in them.

    If the number belongs to another process by now, nothing happens.
    """
    with contextlib.suppress(OSError):
        if str(folder).encode() in Path(f"/proc/{pid}/cmdline").read_bytes():
            os.kill(pid, signal.SIGKILL)


def has_own_network(pid: int) -> bool:
    """Whether the process has another network namespace than this process."""
    mine, its = Path("/proc/self/ns/net"), Path(f"/proc/{pid}/ns/net")
    return mine.readlink() != its.readlink()


def listens_on_22(pid: int) -> bool:
    """Whether a process in the network of `pid` listens on port 22."""
    lines = Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]
    return any(line.split()[1].endswith(":0016") for line in lines)


def until(ready: Callable[[], bool], failure: str, timeout_s: float = 10) -> None:
    """Wait until `ready` is true; after `timeout_s` raises LabError with `failure`.

    An OSError in `ready` counts as false.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        with contextlib.suppress(OSError):
            if ready():
                return
        if time.monotonic() > deadline:
            raise LabError(f"netlab: {failure}")
        time.sleep(0.01)
