"""The command lines of every launcher, made from one placement."""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from signal import SIGTERM, SIGUSR1, Signals

from hvdtrain.errors import ConfigError, ResourceError
from hvdtrain.launch.job import ask
from hvdtrain.launch.placement import Placement

END_S = 10
"""Seconds that mpirun waits between SIGTERM and SIGKILL; it waits as long before SIGTERM."""
LATE_S = 60
"""Seconds after the first task has ended until srun ends the others."""

SSH_OPTIONS = ("-o", "BatchMode=yes", "-o", "ConnectTimeout=10")
"""Never ask for a password; host keys are checked as the user's own ssh does."""


@dataclass(frozen=True)
class LaunchRequest:
    """What to start, and where."""

    placement: Placement
    training: tuple[str, ...]
    """Command line of one rank: /…/hvdtrain train CONFIG …"""
    names: tuple[str, ...] = ()
    """Environment variables to forward."""
    subnet: str | None = None
    """Network between the hosts in CIDR form: names of interfaces differ. None: one host."""
    interface: str | None = None
    """Name of the launching host's interface to that network."""
    remote: bool = False
    """Some rank is not on the launching host."""
    in_slurm: bool = False
    """The launcher finds hosts and slots itself."""


@dataclass(frozen=True)
class Command:
    """A command line, and the signal that it passes on to the ranks for a checkpoint."""

    words: tuple[str, ...]
    checkpoint_signal: Signals
    warnings: tuple[str, ...] = ()


def open_mpi_version() -> tuple[int, ...]:
    """Of the `mpirun` on PATH. Raises ResourceError if there is none or it is not Open MPI's."""
    if shutil.which("mpirun") is None:
        raise ResourceError("mpirun is not on PATH: run . .venv/bin/activate, or load a module")
    first = ask("mpirun", "--version").partition("\n")[0]
    match = re.search(r"\(Open MPI\) (\d+)\.(\d+)", first)
    if match is None:
        raise ResourceError(f"mpirun: expected Open MPI 4.1 or 5, found {first!r}")
    return int(match[1]), int(match[2])


def mpirun(request: LaunchRequest, version: tuple[int, ...], prefix: str | None) -> Command:
    """`mpirun` of Open MPI 4.1 or 5, whose runtime has other options; `prefix`: its folder."""
    five = version >= (5,)
    runtime = "--prtemca" if five else "-mca"
    words = ["mpirun", "-np", str(request.placement.size), "--bind-to", "none"]
    if not request.in_slurm:
        words += ["-H", ",".join(map(str, request.placement.hosts))]
    if request.remote and not request.in_slurm:
        words += [runtime, "plm_ssh_args" if five else "plm_rsh_args", " ".join(SSH_OPTIONS)]
    if prefix is not None and request.remote:
        words += ["--prefix", prefix]
    if request.subnet is not None:
        words += ["--mca" if five else "-mca", "btl_tcp_if_include", request.subnet]
        if not five:  # whose daemons know names only, and those differ between hosts
            words += [runtime, "oob_tcp_if_include", request.subnet]
    # If it is itself told to end. Its default is one second: too short for a checkpoint.
    words += [runtime, "odls_base_sigkill_timeout", str(END_S)]
    for name in request.names:
        words += ["-x", name]
    return Command((*words, *request.training), SIGUSR1)


def horovodrun(
    request: LaunchRequest, controller: str, version: tuple[int, ...], prefix: str | None = None
) -> Command:
    """`horovodrun` over MPI or gloo; it forwards the whole environment it is given.

    It looks for an interface of the same name on all hosts, unless it is given one: the name here
    will do, for the ranks choose their own.
    """
    if controller == "mpi" and version >= (5,):
        raise ConfigError(
            "horovodrun --mpi passes options that Open MPI 5 refuses: take --launcher mpirun"
        )
    words = ["horovodrun", f"--{controller}", "-np", str(request.placement.size)]
    words += ["-H", ",".join(map(str, request.placement.hosts))]
    if request.interface is not None:
        words += ["--network-interfaces", request.interface]
    warnings = []
    if controller == "gloo":
        warnings.append(
            "horovodrun --gloo opens an HTTP store without authentication on all interfaces and "
            "checks no ssh host keys: isolated networks only"
        )
    elif request.subnet is not None:
        options = [f"--prefix {shlex.quote(prefix)}"] if prefix is not None else []
        options += [f"-mca oob_tcp_if_include {request.subnet}"]
        words += ["--mpi-args", " ".join([*options, f"-mca odls_base_sigkill_timeout {END_S}"])]
    # It dies of SIGUSR1; over MPI it was seen not to pass on SIGTERM either, see docs/how-to/launch.
    return Command((*words, *request.training), SIGTERM, tuple(warnings))


def srun(request: LaunchRequest, controller: str, more: Sequence[str] = ()) -> Command:
    """`srun` in an allocation: gloo by way of our own store, or MPI by PMIx."""
    words = ["srun", "--ntasks", str(request.placement.size)]
    words += ["--nodes", str(len(request.placement.hosts)), f"--wait={LATE_S}"]
    if controller == "mpi":
        words.append("--mpi=pmix")
    # srun makes SIGKILL of a SIGTERM; other signals it passes on as they are.
    return Command((*words, *more, *request.training), SIGUSR1)


def mpi_prefix() -> str | None:
    """Where Open MPI is, if it is not where every machine has it."""
    found = shutil.which("mpirun")
    if found is None:
        return None
    prefix = Path(found).parent.parent
    return None if str(prefix) in ("/usr", "/usr/local") else str(prefix)
