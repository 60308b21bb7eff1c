"""Several hosts on one machine: namespaces joined by shaped links, with an sshd in each.

A host has its own network, host name, processes and mounts, and shares the files and the cores of
the machine. Nothing reaches the machine's own network. All of a lab dies with the process that made
it, unless it was made to be kept.
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
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path("/run/netlab")
NETWORK = "10.77.0"
SUBNET = f"{NETWORK}.0/24"
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
"""Programs that a lab needs, and the Debian packages that have them."""

_SYSTEM_PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
_numbers = itertools.count()

# Runs as process 1 of a host, in its own network, mounts and processes. `$1`: the lab's folder,
# `$2`: the host's name. /sys must be mounted anew to show the host's own interfaces.
_INIT = """
set -e
hostname "$2"
ip link set lo up
mount -t sysfs sysfs /sys
sysctl -q net.ipv4.tcp_congestion_control=cubic || true  # what most machines have
mount -t tmpfs tmpfs /dev/shm
mount --bind "$1/hosts" /etc/hosts
mount --bind "$1/ssh_config" /etc/ssh/ssh_config
exec "$3" -D -f "$1/$2/sshd_config" -E "$1/$2/sshd.log"
"""

_SSHD = """ListenAddress 0.0.0.0
HostKey {folder}/host_key
AuthorizedKeysFile {home}/authorized_keys
PidFile none
UsePAM no
StrictModes no
PermitRootLogin prohibit-password
PasswordAuthentication no
MaxStartups 100
SetEnv TMPDIR={home}/tmp
"""

_SSH = """Host *
    IdentityFile {folder}/user_key
    IdentitiesOnly yes
    GlobalKnownHostsFile {folder}/known_hosts
    UserKnownHostsFile {folder}/known_hosts
    StrictHostKeyChecking yes
    BatchMode yes
    ConnectTimeout 5
    LogLevel ERROR
"""


class LabError(Exception):
    """A lab cannot be made or used here; the message is one line."""


def why_not() -> str | None:
    """What keeps this machine from having a lab, in one line; None if nothing does."""
    if not sys.platform.startswith("linux"):
        return "netlab: needs Linux for its network namespaces"
    if os.geteuid() != 0:
        return "netlab: needs root to make network namespaces: run it with sudo"
    missing = [tool for tool in TOOLS if shutil.which(tool, path=_SYSTEM_PATH) is None]
    if missing:
        packages = " ".join(sorted({TOOLS[tool] for tool in missing}))
        return f"netlab: {', '.join(missing)} not found: apt-get install {packages}"
    return None


class Lab:
    """`hosts` hosts node0, node1, … in one subnet, to be used as a context or with `close`.

    `link_gbit`: rate of every host's link in each direction; None: as fast as the machine.
    `nics`: name of each host's interface, repeated if there are more hosts.
    `own_cores`: deal the machine's cores to the hosts in turn; otherwise every host has all.
    `docker0`: give every host the same address 172.17.0.1/16 besides, as Docker does.
    `keep`: outlive this process, until `close` or `netlab down`.
    Raises LabError where there can be no lab.
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
            raise LabError(f"netlab: {self.name!r} is no name for a lab: letters, digits, . _ -")
        self.folder = ROOT / self.name
        self.hosts = [f"node{k}" for k in range(hosts)]
        self.nics = [nics[k % len(nics)] for k in range(hosts)]
        self.cores = _deal(sorted(os.sched_getaffinity(0)), hosts if own_cores else 1, hosts)
        self.ssh_config = self.folder / "ssh_config"
        self._pids: list[int] = []
        self._children: list[subprocess.Popen[bytes]] = []
        try:
            self.folder.mkdir(parents=True, mode=0o755)
        except FileExistsError:
            raise LabError(f"netlab: there is a lab {self.name}: netlab down removes it") from None
        try:
            self._write_files()
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
        """The kept lab of that name; raises LabError if there is none."""
        state = _state(ROOT / name)
        if state is None or not _alive(state["pids"][0]):
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
        """End every process of the lab and remove its folder; nothing of it is left."""
        for pid in self._pids:
            _kill(pid, self.folder)
        for child in self._children:
            child.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    def address(self, host: int) -> str:
        """IPv4 address of a host."""
        return f"{NETWORK}.{host + 1}"

    def inside(self, host: int) -> list[str]:
        """What to put before a command to have it run on a host, in the folder of the caller."""
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
        """Run a command (a text: by sh) on a host, in the caller's environment and `env`.

        Never raises for an exit code; raises subprocess.TimeoutExpired.
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
        """As `run`; returns standard output. Raises LabError for an exit code other than 0."""
        done = self.run(host, command, **options)
        if done.returncode != 0:
            text = " ".join((done.stderr or done.stdout).split())[-1000:]
            raise LabError(f"netlab: {self.hosts[host]}: {command}: exit {done.returncode}: {text}")
        return done.stdout

    def mpirun_arguments(self, ranks_per_host: int = 1, hosts: int | None = None) -> list[str]:
        """mpirun's arguments to start ranks on the first `hosts` hosts (None: on all), one host
        after the other; to be run on one of them."""
        names = self.hosts[:hosts]
        arguments = ["-np", str(len(names) * ranks_per_host)]
        arguments += ["-H", ",".join(f"{name}:{ranks_per_host}" for name in names)]
        for key in ("btl_tcp_if_include", "oob_tcp_if_include"):
            arguments += ["-mca", key, SUBNET]
        arguments += ["-bind-to", "none", "-x", "PATH", "-x", "PYTHONPATH"]
        if (Path(sys.prefix) / "bin/orted").exists():  # Open MPI came with this environment
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
            # At once 1 ms of the link, at least two of the kernel's 64 KiB segments: with less,
            # segments are lost. Then 1 MiB waits, about what a port of a switch holds.
            burst = max(2**17, round(link_gbit * 1e9 / 8 * 1e-3))
            queue = f"tbf rate {link_gbit * 1e9:.0f}bit burst {burst} limit {2**20}"
            self._ip(place, f"tc qdisc replace dev {device} root {queue}")

    def kill(self, host: int) -> None:
        """The host is gone, with all that ran on it, as if its plug was pulled."""
        self._ip(0, f"ip link delete port{host}")
        _kill(self._pids[host + 1], self.folder)

    def refuse_key(self, host: int) -> None:
        """The host's sshd no longer accepts the key of the other hosts."""
        (self._home(host) / "authorized_keys").write_text("")

    def _home(self, host: int) -> Path:
        return self.folder / self.hosts[host]

    def _write_files(self) -> None:
        for key in ("host_key", "user_key"):
            command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", self.name, "-f", key]
            subprocess.run(command, check=True, cwd=self.folder)
        host_key = (self.folder / "host_key.pub").read_text()
        user_key = (self.folder / "user_key.pub").read_text()
        names = [f"{self.address(k)} {name}" for k, name in enumerate(self.hosts)]
        (self.folder / "hosts").write_text("\n".join(["127.0.0.1 localhost", *names, ""]))
        (self.folder / "known_hosts").write_text(f"* {host_key}")
        self.ssh_config.write_text(_SSH.format(folder=self.folder))
        for k in range(len(self.hosts)):
            home = self._home(k)
            (home / "tmp").mkdir(parents=True)
            (home / "authorized_keys").write_text(user_key)
            (home / "sshd_config").write_text(_SSHD.format(folder=self.folder, home=home))
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # sshd insists on it

    def _start(self, role: str, keep: bool, cores: str | None = None) -> None:
        """A process in namespaces of its own: the switch, or a host with its sshd."""
        bound = ["taskset", "--cpu-list", cores] if cores else []
        sshd = shutil.which("sshd", path=_SYSTEM_PATH)
        if role == "switch":
            command = ["sh", "-c", "exec sleep infinity", str(self.folder)]
        else:
            command = ["sh", "-c", _INIT, "netlab", str(self.folder), role, str(sshd)]
        spaces = ["--net", "--uts", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
        mortal = [] if keep else ["setpriv", "--pdeathsig", "KILL", "--"]
        with (self.folder / f"{role}.log").open("wb") as log:
            child = subprocess.Popen(
                [*mortal, *bound, "unshare", *spaces, "--", *command],
                env={**os.environ, "PATH": _SYSTEM_PATH},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
                start_new_session=True,
            )
        self._children.append(child)
        self._pids.append(child.pid)

    def _wire(self, docker0: bool) -> None:
        for pid in self._pids:
            _until(functools.partial(_own_network, pid), f"{self.name}: no network namespace")
        self._ip(0, "ip link add br0 type bridge")
        self._ip(0, "ip link set br0 up")
        for k, nic in enumerate(self.nics):
            pid = self._pids[k + 1]
            self._ip(0, f"ip link add port{k} type veth peer name {nic} netns {pid}")
            self._ip(0, f"ip link set port{k} master br0 up")
            self._ip(k + 1, f"ip address add {self.address(k)}/24 dev {nic}")
            self._ip(k + 1, f"ip link set {nic} up")
            if docker0:  # with a container's end on it, so that it is up like the real one
                self._ip(k + 1, "ip link add docker0 type bridge")
                self._ip(k + 1, "ip link add veth0 type veth peer name container0")
                self._ip(k + 1, "ip link set veth0 master docker0 up")
                self._ip(k + 1, "ip link set container0 up")
                self._ip(k + 1, "ip address add 172.17.0.1/16 dev docker0")
                self._ip(k + 1, "ip link set docker0 up")

    def _ip(self, place: int, command: str, *, check: bool = True) -> None:
        """A command in the network of the switch (0) or of a host (1 + number)."""
        words = ["nsenter", f"--net=/proc/{self._pids[place]}/ns/net", *command.split()]
        env = {**os.environ, "PATH": _SYSTEM_PATH}
        done = subprocess.run(words, env=env, capture_output=True, text=True, check=False)
        if check and done.returncode != 0:
            raise LabError(f"netlab: {command}: {' '.join(done.stderr.split())}")

    def _wait_for_sshd(self) -> None:
        for k, name in enumerate(self.hosts):
            pid = self._pids[k + 1]
            log = self._home(k) / "sshd.log"
            _until(
                functools.partial(_listens_on_22, pid),
                f"no sshd on {name}: see {log} and {self.folder / name}.log",
            )

    def _save(self, keep: bool) -> None:
        state = {"hosts": self.hosts, "nics": self.nics, "cores": self.cores, "pids": self._pids}
        state |= {"owner": None if keep else os.getpid()}
        (self.folder / "lab.json").write_text(json.dumps(state))


def labs() -> dict[str, bool]:
    """Every lab that has a folder, and whether it is in use: its processes and its owner live."""
    found = {}
    for folder in sorted(ROOT.glob("*/")):
        state = _state(folder)
        owned = state is not None and (state["owner"] is None or _alive(state["owner"]))
        found[folder.name] = state is not None and owned and _alive(state["pids"][0])
    return found


def remove(name: str) -> None:
    """End whatever is left of a lab, and remove its folder."""
    folder = ROOT / name
    for pid in (_state(folder) or {"pids": []})["pids"]:
        _kill(pid, folder)
    shutil.rmtree(folder, ignore_errors=True)


def _deal(cores: Sequence[int], shares: int, hosts: int) -> list[str]:
    """The cores of each host as a list for taskset: every `shares`-th one, at least one."""
    lists = [cores[k % len(cores) :: shares] for k in range(shares)]
    return [",".join(map(str, lists[k % shares])) for k in range(hosts)]


def _state(folder: Path) -> dict[str, Any] | None:
    try:
        state: dict[str, Any] = json.loads((folder / "lab.json").read_text())
    except (OSError, ValueError):
        return None
    return state


def _alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def _kill(pid: int, folder: Path) -> None:
    """Kill a process that holds namespaces of the lab, and wait; another one of that number is
    left alone. The kernel ends all processes of its namespaces with it."""
    with contextlib.suppress(OSError):
        if str(folder).encode() in Path(f"/proc/{pid}/cmdline").read_bytes():
            os.kill(pid, signal.SIGKILL)


def _own_network(pid: int) -> bool:
    mine, its = Path("/proc/self/ns/net"), Path(f"/proc/{pid}/ns/net")
    return mine.readlink() != its.readlink()


def _listens_on_22(pid: int) -> bool:
    lines = Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]
    return any(line.split()[1].endswith(":0016") for line in lines)


def _until(ready: Any, failure: str, timeout_s: float = 10) -> None:
    deadline = time.monotonic() + timeout_s
    while True:
        with contextlib.suppress(OSError):
            if ready():
                return
        if time.monotonic() > deadline:
            raise LabError(f"netlab: {failure}")
        time.sleep(0.01)
