"""Several hosts on one machine: namespaces joined by shaped links, with an sshd in each.

A host has its own network, host name, processes and mounts; it shares the files and cores of the
machine. Hosts cannot reach the machine's own network. A lab ends with the process that made it,
unless it is made with `keep`.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.netlab.host_files import host_command, write_files
from benchmarks.netlab.namespaces import (
    LabError,
    alive,
    assign_cores,
    has_own_network,
    hold,
    in_network,
    kill,
    listens_on_22,
    network_of,
    until,
    why_not,
)

ROOT = Path("/run/netlab")
NETWORK = "10.77.0"
SUBNET = f"{NETWORK}.0/24"
_numbers = itertools.count()


class Lab:
    """Hosts node0, node1, … in one subnet. A context manager; otherwise call `close`.

    `link_gbit`: rate of every host's link in each direction, Gbit/s; None: no limit.
    `nics`: name of each host's interface; the names repeat if there are more hosts.
    `own_cores`: distribute the machine's cores among the hosts; otherwise every host has all.
    `docker0`: give every host a second address, 172.17.0.1/16 for all, as Docker does.
    `keep`: the lab outlives this process, until `close` or `netlab down`.
    Raises LabError if a lab cannot be made on this machine.
    """

    def __init__(
        self,
        hosts: int = 4,
        *,
        link_gbit: float | None = 1.0,
        nics: Sequence[str] = ("eth0",),
        own_cores: bool = True,
        docker0: bool = False,
        keep: bool = False,
        name: str | None = None,
    ) -> None:
        if reason := why_not():
            raise LabError(reason)
        if not 1 <= hosts <= 200:
            raise LabError(f"netlab: expected 1 to 200 hosts, found {hosts}")
        self.name = name or f"netlab-{os.getpid()}-{next(_numbers)}"
        if not re.fullmatch(r"[\w.-]{1,40}", self.name):
            raise LabError(
                f"netlab: expected a name of 1 to 40 letters, digits, . _ -, found {self.name!r}"
            )
        self.folder = ROOT / self.name
        self.hosts = [f"node{k}" for k in range(hosts)]
        self.nics = [nics[k % len(nics)] for k in range(hosts)]
        self.cores = assign_cores(sorted(os.sched_getaffinity(0)), hosts if own_cores else 1, hosts)
        self.ssh_config = self.folder / "ssh_config"
        self._pids: list[int] = []
        self._children: list[subprocess.Popen[bytes]] = []
        try:
            self.folder.mkdir(parents=True, mode=0o755)
        except FileExistsError:
            raise LabError(f"netlab: lab {self.name} exists: netlab down removes it") from None
        try:
            write_files(self.folder, {n: self.address(k) for k, n in enumerate(self.hosts)})
            self._start("switch", keep)
            for name, cores in zip(self.hosts, self.cores, strict=True):
                self._start(name, keep, cores)
            self._save(keep)
            self._wire(docker0)
            self.shape(link_gbit)
            self._wait_for_sshd()
        except BaseException:
            self.close()
            raise

    @classmethod
    def attach(cls, name: str) -> Lab:
        """Open the kept lab of this name; raises LabError if there is none."""
        state = _state(ROOT / name)
        if state is None or not alive(state["pids"][0]):
            raise LabError(f"netlab: no lab {name} is up: netlab up makes one")
        lab = cls.__new__(cls)
        lab.name, lab.folder, lab.ssh_config = name, ROOT / name, ROOT / name / "ssh_config"
        lab.hosts, lab.nics, lab._pids = state["hosts"], state["nics"], state["pids"]
        lab.cores, lab._children = state["cores"], []
        return lab

    def __enter__(self) -> Lab:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End every process of the lab and remove its folder."""
        for pid in self._pids:
            kill(pid, self.folder)
        for child in self._children:
            child.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    def address(self, host: int) -> str:
        """IPv4 address of a host."""
        return f"{NETWORK}.{host + 1}"

    def inside(self, host: int) -> list[str]:
        """Words to put before a command so that it runs on a host, in the caller's folder."""
        pid = self._pids[host + 1]
        spaces = [f"--{kind}=/proc/{pid}/ns/{kind}" for kind in ("net", "uts")]
        spaces += [f"--mount=/proc/{pid}/ns/mnt", f"--pid=/proc/{pid}/ns/pid_for_children"]
        bound = ["taskset", "--cpu-list", self.cores[host]]
        temporary = ["env", f"TMPDIR={self._home(host)}/tmp"]
        return ["nsenter", *spaces, "--wd=.", "--", *bound, *temporary]

    def run(
        self,
        host: int,
        command: Sequence[object] | str,
        *,
        env: Mapping[str, str] | None = None,
        timeout_s: float = 240,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command on a host with the caller's environment and `env`; sh runs a string.

        Does not raise for an exit code; raises subprocess.TimeoutExpired.
        """
        words = ["sh", "-c", command] if isinstance(command, str) else list(map(str, command))
        with subprocess.Popen(
            [*self.inside(host), *words],
            env={**os.environ, **(env or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        ) as process:
            try:
                out, err = process.communicate(timeout=timeout_s)
            except BaseException:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                raise
        return subprocess.CompletedProcess(words, process.returncode, out, err)

    def check(self, host: int, command: Sequence[object] | str, **options: Any) -> str:
        """Like `run`, but returns standard output; raises LabError if the exit code is not 0."""
        done = self.run(host, command, **options)
        if done.returncode != 0:
            text = " ".join((done.stderr or done.stdout).split())[-1000:]
            raise LabError(f"netlab: {self.hosts[host]}: {command}: exit {done.returncode}: {text}")
        return done.stdout

    def mpirun_arguments(self, ranks_per_host: int = 1, hosts: int | None = None) -> list[str]:
        """Arguments for mpirun on one of the hosts to start ranks on the first `hosts` hosts.

        `hosts` None: on all hosts. The ranks are numbered host by host.
        """
        names = self.hosts[:hosts]
        arguments = ["-np", str(len(names) * ranks_per_host)]
        arguments += ["-H", ",".join(f"{name}:{ranks_per_host}" for name in names)]
        for key in ("btl_tcp_if_include", "oob_tcp_if_include"):
            arguments += ["-mca", key, SUBNET]
        arguments += ["-bind-to", "none", "-x", "PATH", "-x", "PYTHONPATH"]
        if (Path(sys.prefix) / "bin/orted").exists():  # Open MPI is part of this environment
            arguments += ["--prefix", sys.prefix]
        return arguments

    def shape(self, link_gbit: float | None) -> None:
        """Set the rate of every link in each direction; None: no limit."""
        ports = [(0, f"port{k}") for k in range(len(self.hosts))]
        ports += [(k + 1, nic) for k, nic in enumerate(self.nics)]
        for place, device in ports:
            if link_gbit is None:
                self._ip(place, f"tc qdisc del dev {device} root", check=False)
                continue
            # The burst is 1 ms of the link, but at least two of the kernel's 64 KiB segments: a
            # smaller burst loses segments. The queue is 1 MiB, about what a switch port holds.
            burst = max(2**17, round(link_gbit * 1e9 / 8 * 1e-3))
            queue = f"tbf rate {link_gbit * 1e9:.0f}bit burst {burst} limit {2**20}"
            self._ip(place, f"tc qdisc replace dev {device} root {queue}")

    def link(self, host: int, *, up: bool) -> None:
        """Plug a host's cable in, or pull it."""
        self._ip(0, f"ip link set port{host} {'up' if up else 'down'}")

    def has(self, pid: int) -> bool:
        """Whether a process runs on one of the hosts."""
        return network_of(pid) in {network_of(host) for host in self._pids[1:]} - {None}

    def kill(self, host: int) -> None:
        """End a host and all its processes at once, as if it lost power."""
        self._ip(0, f"ip link delete port{host}")
        kill(self._pids[host + 1], self.folder)

    def refuse_key(self, host: int) -> None:
        """Make the host's sshd refuse the key of the other hosts."""
        (self._home(host) / "authorized_keys").write_text("")

    def _home(self, host: int) -> Path:
        return self.folder / self.hosts[host]

    def _start(self, role: str, keep: bool, cores: str | None = None) -> None:
        """Start a process in its own namespaces: the switch, or a host with its sshd."""
        command = ["sh", "-c", "exec sleep infinity", str(self.folder)]
        if role != "switch":
            command = host_command(self.folder, role)
        child = hold(command, self.folder / f"{role}.log", keep=keep, cores=cores)
        self._children.append(child)
        self._pids.append(child.pid)

    def _wire(self, docker0: bool) -> None:
        for pid in self._pids:
            until(functools.partial(has_own_network, pid), f"{self.name}: no network namespace")
        self._ip(0, "ip link add br0 type bridge")
        self._ip(0, "ip link set br0 up")
        for k, nic in enumerate(self.nics):
            pid = self._pids[k + 1]
            self._ip(0, f"ip link add port{k} type veth peer name {nic} netns {pid}")
            self._ip(0, f"ip link set port{k} master br0 up")
            self._ip(k + 1, f"ip address add {self.address(k)}/24 dev {nic}")
            self._ip(k + 1, f"ip link set {nic} up")
            if docker0:  # with a container's interface, so that it is up as on a real host
                self._ip(k + 1, "ip link add docker0 type bridge")
                self._ip(k + 1, "ip link add veth0 type veth peer name container0")
                self._ip(k + 1, "ip link set veth0 master docker0 up")
                self._ip(k + 1, "ip link set container0 up")
                self._ip(k + 1, "ip address add 172.17.0.1/16 dev docker0")
                self._ip(k + 1, "ip link set docker0 up")

    def _ip(self, place: int, command: str, *, check: bool = True) -> None:
        """Run a command in the network of the switch (`place` 0) or of host `place` - 1."""
        in_network(self._pids[place], command, check=check)

    def _wait_for_sshd(self) -> None:
        for k, name in enumerate(self.hosts):
            pid = self._pids[k + 1]
            log = self._home(k) / "sshd.log"
            until(
                functools.partial(listens_on_22, pid),
                f"no sshd on {name}: see {log} and {self.folder / name}.log",
            )

    def _save(self, keep: bool) -> None:
        state = {"hosts": self.hosts, "nics": self.nics, "cores": self.cores, "pids": self._pids}
        state |= {"owner": None if keep else os.getpid()}
        (self.folder / "lab.json").write_text(json.dumps(state))


def labs() -> dict[str, bool]:
    """All labs that have a folder, and whether each is in use: processes and owner are alive."""
    in_use = {}
    for folder in sorted(ROOT.glob("*/")):
        state = _state(folder)
        owned = state is not None and (state["owner"] is None or alive(state["owner"]))
        in_use[folder.name] = state is not None and owned and alive(state["pids"][0])
    return in_use


def remove(name: str) -> None:
    """End the remaining processes of a lab and remove its folder."""
    folder = ROOT / name
    for pid in (_state(folder) or {"pids": []})["pids"]:
        kill(pid, folder)
    shutil.rmtree(folder, ignore_errors=True)


def _state(folder: Path) -> dict[str, Any] | None:
    try:
        state: dict[str, Any] = json.loads((folder / "lab.json").read_text())
    except (OSError, ValueError):
        return None
    return state
