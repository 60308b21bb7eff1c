"""A real Slurm with two nodes on this host: munge, a controller and two node daemons on loopback."""

from __future__ import annotations

import contextlib
import os
import pwd
import re
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from tests.launch import environment, free_port

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scancel", "scontrol", "squeue")
NODES = ("n1", "n2", "n3")
"""n3 is in the partition `three` alone."""
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")
LIMIT_S = 240.0
# cred_expire: a requeued job waits until the credentials of its first start have expired.
CONFIG = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={root}/munge.socket,cred_expire=5
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
StateSaveLocation={root}/state
SlurmdSpoolDir={root}/%n
SlurmctldPidFile={root}/slurmctld.pid
SlurmdPidFile={root}/%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MailProg=/bin/true
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
SchedulerParameters=bf_interval=1,sched_interval=1,sched_min_interval=100000
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
KillWait=90
ReturnToService=2
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={port1} CPUs=4
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={port2} CPUs=4
NodeName=n3 NodeHostname={host} NodeAddr=127.0.0.1 Port={port3} CPUs=4
PartitionName=low Nodes=n1,n2 Default=YES PriorityTier=1 GraceTime=90 PreemptMode=REQUEUE
PartitionName=high Nodes=n1,n2 PriorityTier=10 PreemptMode=OFF
PartitionName=three Nodes=n1,n2,n3 PriorityTier=1 PreemptMode=OFF
"""


def find(program: str) -> str | None:
    """The path of a program; daemons are not on every user's PATH."""
    return shutil.which(program) or shutil.which(program, path="/usr/sbin:/sbin")


class Slurm:
    """The daemons, and the commands that tests need."""

    def __init__(self) -> None:
        # Not pytest's folder: a socket's path is at most 107 characters long.
        self.root = Path(tempfile.mkdtemp(prefix="slurm-"))
        self._daemons: list[subprocess.Popen[bytes]] = []
        port, ports = free_port(), [free_port() for _ in NODES]
        user = pwd.getpwuid(os.geteuid()).pw_name
        (self.root / "state").mkdir()
        settings = {"port": port, "user": user}
        settings |= {f"port{k}": each for k, each in enumerate(ports, 1)}
        text = CONFIG.format(root=self.root, host=socket.gethostname(), **settings)
        (self.root / "slurm.conf").write_text(text)
        key = self.root / "munge.key"
        key.write_bytes(secrets.token_bytes(128))
        key.chmod(0o400)
        self.env = environment({"SLURM_CONF": str(self.root / "slurm.conf")})
        self.env = {n: v for n, v in self.env.items() if not n.startswith(("OMPI_MCA", "HOROVOD"))}

    def start(self) -> None:
        """Start all daemons. Raises RuntimeError with the end of their logs."""
        files = [f"--{w}-file={self.root}/munge.{w}" for w in ("key", "log", "pid", "seed")]
        files.append(f"--socket={self.root}/munge.socket")
        self._daemon("munged", "--foreground", "--force", "--num-threads=1", *files)
        self.until("munge", (self.root / "munge.socket").exists)
        self._daemon("slurmctld", "-D", "-c")
        for node in NODES:
            self._daemon("slurmd", "-D", "-N", node)
        self.until("nodes", lambda: self._idle() == len(NODES))

    def stop(self) -> None:
        """Cancel all jobs and end all daemons."""
        if len(self._daemons) > 1:
            self._ask("scancel", "--full", "--signal=KILL", "--state=RUNNING", "--quiet")
            self._ask("scancel", "--quiet", *self._ask("squeue", "-h", "-o", "%i").split())
            deadline = time.monotonic() + 20
            while self._ask("squeue", "-h") and time.monotonic() < deadline:
                time.sleep(0.2)
        for daemon in reversed(self._daemons):
            daemon.terminate()
        for daemon in self._daemons:
            try:
                daemon.wait(10)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        shutil.rmtree(self.root)

    def lose(self, node: str) -> None:
        """Kill a node's daemon and everything that it has started, as if it lost power."""
        [slurmd] = [d for d in self._daemons if isinstance(d.args, list) and node in d.args]
        slurmd.kill()
        slurmd.wait()
        self._daemons.remove(slurmd)
        for process in self._on(node):
            with contextlib.suppress(psutil.Error):
                parent = process.parent()
                if parent is not None and parent.name().startswith("slurmstepd"):
                    parent.kill()
                process.kill()

    def _on(self, node: str) -> list[psutil.Process]:
        """What this Slurm has started on a node."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                env = process.environ()
                if (env.get("SLURMD_NODENAME"), env.get("SLURM_CONF")) == (
                    node,
                    self.env["SLURM_CONF"],
                ):
                    found.append(process)
        return found

    def restore(self, node: str) -> None:
        """Have a lost node counted as down, so that its jobs end, and start its daemon again."""
        self._ask("scontrol", "update", f"NodeName={node}", "State=DOWN", "Reason=lost")
        self._daemon("slurmd", "-D", "-N", node)
        self.until(f"{node} up", lambda: "*" not in self._state(node))
        self._ask("scontrol", "update", f"NodeName={node}", "State=RESUME")

    def _state(self, node: str) -> str:
        return self._ask("sinfo", "-h", "-N", "-n", node, "-p", "three", "-o", "%t")

    def submit(self, folder: Path, *arguments: object) -> str:
        """Submit a batch script; returns the number of the job."""
        done = self.run(folder, "sbatch", "--parsable", *arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def run(self, folder: Path, *command: object) -> subprocess.CompletedProcess[str]:
        """Run a command as a user of this Slurm does."""
        return subprocess.run(
            list(map(str, command)),
            cwd=folder,
            env=self.env,
            text=True,
            timeout=LIMIT_S,
            stdin=subprocess.DEVNULL,
            capture_output=True,
        )

    def job(self, number: str) -> dict[str, str]:
        """The fields of `scontrol show job`."""
        text = self._ask("scontrol", "show", "job", "--oneliner", number)
        return dict(re.findall(r"(\w+)=(\S*)", text))

    def finish(self, number: str) -> dict[str, str]:
        """Wait until the job has ended and will not be requeued; returns its fields."""
        self.until(f"job {number}", lambda: self.job(number)["JobState"] in ENDED)
        return self.job(number)

    def until(self, what: str, done: Callable[[], bool]) -> None:
        """Wait until `done` returns true. Raises RuntimeError after LIMIT_S."""
        deadline = time.monotonic() + LIMIT_S
        while not done():
            gone = [d.args for d in self._daemons if d.poll() is not None]
            if gone or time.monotonic() > deadline:
                logs = [p.read_text()[-1500:] for p in sorted(self.root.glob("*.log"))]
                raise RuntimeError(f"{what}: not in time; ended: {gone}\n" + "\n".join(logs))
            time.sleep(0.1)

    def _daemon(self, *command: str) -> None:
        with (self.root / f"{len(self._daemons)}-{command[0]}.log").open("wb") as log:
            arguments = [find(command[0]) or command[0], *command[1:]]
            self._daemons.append(
                subprocess.Popen(
                    arguments, env=self.env, stdin=subprocess.DEVNULL, stdout=log, stderr=log
                )
            )

    def _ask(self, *command: str) -> str:
        return self.run(self.root, *command).stdout

    def _idle(self) -> int:
        states = self._ask("sinfo", "-h", "-N", "-p", "three", "-o", "%t").split()
        return states.count("idle")
