"""The command lines of mpirun, horovodrun and srun for one placement."""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from signal import SIGKILL, SIGTERM, SIGUSR1, Signals
from typing import Literal

from hvdtrain.errors import ConfigError, ResourceError
from hvdtrain.launch.job import Ending, ask
from hvdtrain.launch.nic import Nic
from hvdtrain.launch.placement import Placement

Launcher = Literal["mpirun", "horovodrun", "srun"]
Controller = Literal["mpi", "gloo"]
"""How ranks find each other and sum on CPUs."""

END_S = 5
"""Seconds that mpirun waits before it sends SIGTERM to the ranks, and again before SIGKILL."""
SLURM_END_S = 10
"""The same in a Slurm job, which signals mpirun's daemons as well when it wants a checkpoint."""
LOST_HOST = (
    ("oob_tcp_keepalive_time", "10"),
    ("oob_tcp_keepalive_intvl", "3"),
    ("oob_tcp_keepalive_probes", "3"),
)
"""Open MPI 4.1: a daemon whose host has lost power or its link is missed after 19 s, not after minutes."""
LATE_S = 60
"""Seconds after the first task has ended until srun kills the others."""

SPARE_LATE_S = 15
"""The same after a fault, where a spare node waits."""
ENDLESS, ENDLESS_S = "srun: Job step aborted: Waiting up to", 5
"""With a node that is lost, srun waits for minutes after this line; it is killed after so many seconds."""
FAULT = r"srun: error: \S+: tasks? [\d,-]+: (?!Exited with exit code 75$)"
"""What srun says of a task that has not ended in order."""

SSH_OPTIONS = ("-o", "BatchMode=yes", "-o", "ConnectTimeout=10")
"""Never ask for a password. Host keys are checked as the user's ssh is configured."""


@dataclass(frozen=True)
class LaunchRequest:
    """What to start, where, and by which launcher."""

    placement: Placement
    training: tuple[str, ...]
    """Command line of one rank: /…/hvdtrain train CONFIG …"""
    launcher: Launcher = "mpirun"
    controller: Controller = "mpi"
    names: tuple[str, ...] = ()
    """Environment variables to forward."""
    nic: Nic | None = None
    """The launching host's interface to the network between the hosts."""
    remote: bool = False
    """At least one rank is on another host."""
    in_slurm: bool = False
    """The launcher reads hosts and slots from the Slurm job."""
    part: bool = False
    """Only these hosts of the Slurm job are used."""

    @property
    def needs_ssh(self) -> bool:
        """The launcher starts ranks on other hosts through ssh."""
        return self.remote and not self.in_slurm

    @property
    def network(self) -> Nic | None:
        """`nic`, if ranks talk over it; None on one host."""
        return self.nic if self.remote else None


@dataclass(frozen=True)
class Command:
    """A launcher's command line."""

    words: tuple[str, ...]
    checkpoint_signal: Signals
    """The launcher passes it on to the ranks, which then write a checkpoint and stop."""
    warnings: tuple[str, ...] = ()
    endings: tuple[Ending, ...] = ()
    """Lines of the launcher after which it is not waited for much longer."""


def named_config(arguments: Sequence[str]) -> tuple[str | None, list[str]]:
    """The config file and the overrides in a rank's arguments: `train x.yaml lr.base=1`.

    The file is None if the command takes none.
    """
    config = next((word for word in arguments[1:] if word.endswith((".yaml", ".yml"))), None)
    return config, [word for word in arguments if "=" in word and not word.startswith("-")]


def open_mpi_version() -> tuple[int, ...]:
    """Version of the `mpirun` on PATH. Raises ResourceError unless it is Open MPI's."""
    if shutil.which("mpirun") is None:
        raise ResourceError("mpirun is not on PATH: run . .venv/bin/activate, or load a module")
    first = ask("mpirun", "--version").partition("\n")[0]
    match = re.search(r"\(Open MPI\) (\d+)\.(\d+)", first)
    if match is None:
        raise ResourceError(f"mpirun: expected Open MPI 4.1 or 5, found {first!r}")
    return int(match[1]), int(match[2])


def mpirun(request: LaunchRequest, version: tuple[int, ...], prefix: str | None) -> Command:
    """The command line of `mpirun`; Open MPI 4.1 and 5 have different options.

    `prefix`: the folder of Open MPI, if it is not in a standard place.
    """
    five = version >= (5,)
    runtime = "--prtemca" if five else "-mca"
    words = ["mpirun", "-np", str(request.placement.size), "--bind-to", "none"]
    if not request.in_slurm or request.part:
        words += ["-H", ",".join(map(str, request.placement.hosts))]
    if request.needs_ssh:
        words += [runtime, "plm_ssh_args" if five else "plm_rsh_args", " ".join(SSH_OPTIONS)]
    if prefix is not None and request.remote:
        words += ["--prefix", prefix]
    if request.network is not None:
        subnet = request.network.subnet
        words += ["--mca" if five else "-mca", "btl_tcp_if_include", subnet]
        if not five:  # in 5 the daemons take only names, which differ between hosts
            words += [runtime, "oob_tcp_if_include", subnet]
            words += [word for name, value in LOST_HOST for word in (runtime, name, value)]
    # Used when mpirun itself gets SIGTERM, and when a rank has died. The default, 1 s, is too short for a
    # checkpoint; the longer it is, the longer a job whose rank died waits for its end.
    words += [runtime, "odls_base_sigkill_timeout", str(SLURM_END_S if request.in_slurm else END_S)]
    for name in request.names:
        words += ["-x", name]
    return Command((*words, *request.training), SIGUSR1)


def horovodrun(request: LaunchRequest, version: tuple[int, ...], prefix: str | None) -> Command:
    """The command line of `horovodrun` over MPI or gloo; it forwards its whole environment.

    Without --network-interfaces it looks for an interface of the same name on all hosts, and fails
    where there is none. The name on this host is enough: every rank chooses its own interface.
    """
    if request.controller == "mpi" and version >= (5,):
        raise ConfigError(
            "horovodrun --mpi passes options that Open MPI 5 refuses: use --launcher mpirun"
        )
    words = ["horovodrun", f"--{request.controller}", "-np", str(request.placement.size)]
    words += ["-H", ",".join(map(str, request.placement.hosts))]
    if request.network is not None:
        words += ["--network-interfaces", request.network.name]
    warnings = []
    if request.controller == "gloo":
        warnings.append(
            "horovodrun --gloo opens an HTTP store without authentication on all interfaces and "
            "does not check ssh host keys: use it on isolated networks only"
        )
    elif request.network is not None:
        options = [f"--prefix {shlex.quote(prefix)}"] if prefix is not None else []
        options += [f"-mca oob_tcp_if_include {request.network.subnet}"]
        words += ["--mpi-args", " ".join([*options, f"-mca odls_base_sigkill_timeout {END_S}"])]
    # SIGUSR1 kills it. Over MPI it sometimes did not pass on SIGTERM either: see docs/how-to/launch.
    return Command((*words, *request.training), SIGTERM, tuple(warnings))


def srun(request: LaunchRequest) -> Command:
    """The command line of `srun` in a Slurm job: gloo through our own store, or MPI by PMIx."""
    words = ["srun", "--ntasks", str(request.placement.size)]
    words += ["--nodes", str(len(request.placement.hosts)), f"--wait={LATE_S}"]
    if request.part:
        words.append("--nodelist=" + ",".join(host.name for host in request.placement.hosts))
        words.append("--overlap")  # the step of the attempt before may never end on a lost node
    if request.controller == "mpi":
        words.append("--mpi=pmix")
    # srun turns SIGTERM into SIGKILL; other signals it passes on as they are.
    lost = (Ending(FAULT, SPARE_LATE_S, SIGTERM), Ending(ENDLESS, ENDLESS_S, SIGKILL))
    endings = lost if request.part else ()
    return Command((*words, *request.training), SIGUSR1, endings=endings)


def launcher_command(request: LaunchRequest) -> Command:
    """The command line of the requested launcher.

    Raises ConfigError if it cannot do what is asked, ResourceError if it is not installed.
    """
    if request.launcher == "srun":
        return srun(request)
    if request.launcher == "mpirun" and request.controller == "gloo":
        raise ConfigError(
            "--controller gloo: mpirun cannot do it: use --launcher srun or horovodrun"
        )
    version = open_mpi_version() if request.controller == "mpi" else ()
    build = mpirun if request.launcher == "mpirun" else horovodrun
    return build(request, version, mpi_prefix())


def mpi_prefix() -> str | None:
    """The folder of Open MPI; None if it is in a standard place or not installed."""
    program = shutil.which("mpirun")
    if program is None:
        return None
    prefix = Path(program).parent.parent
    return None if str(prefix) in ("/usr", "/usr/local") else str(prefix)
