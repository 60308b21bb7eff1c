"""Start a job: place its ranks, choose launcher and network, and run the launcher."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from hvdtrain.errors import ConfigError
from hvdtrain.files import write_atomically
from hvdtrain.launch.allocation import in_allocation, node_names, slurm_placement
from hvdtrain.launch.commands import Command, Controller, Launcher, LaunchRequest, launcher_command
from hvdtrain.launch.forwarding import forwarded
from hvdtrain.launch.hosts import given_hosts
from hvdtrain.launch.job import Ended, own_command, run_job
from hvdtrain.launch.links import LINK_GBIT
from hvdtrain.launch.nic import choose
from hvdtrain.launch.note_folder import open_mpi_folders
from hvdtrain.launch.placement import Placement, place
from hvdtrain.launch.slurm_task import RANKS, RENDEZVOUS
from hvdtrain.launch.spares import Pool

AS_ROOT = ("OMPI_ALLOW_RUN_AS_ROOT", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM")
"""Environment variables by which root allows Open MPI to run as root; both are 1."""
HOROVODRUN_NEEDS = (
    "HOME",
    "USER",
    "LANG",
    "LC_ALL",
    "SSH_AUTH_SOCK",
    *AS_ROOT,
)
"""Environment variables that horovodrun itself needs."""


@dataclass(frozen=True)
class Job:
    """A job that is ready to start: its launcher's command line and environment."""

    request: LaunchRequest
    command: Command
    env: Mapping[str, str]
    """Environment of the launcher."""
    needs_store: bool
    """Ranks find each other through our own store, see `rendezvous`."""

    def run(
        self,
        stopped: Callable[[], bool] = lambda: False,
        recall: Callable[[], bool] | None = None,
    ) -> Ended:
        """Run the launcher and wait for its end; `stopped`, `recall`: see `run_job`.

        Raises ResourceError, and ConfigError as root, unless mpirun is allowed to run as root.
        """
        _require_leave_for_root(self.request, self.env)
        nic, size = self.request.nic, self.request.placement.size
        with contextlib.ExitStack() as stack:
            env = self.env
            if self.request.launcher == "mpirun" and not self.request.remote:
                env = {**env, **stack.enter_context(open_mpi_folders(env))}
            if self.needs_store:
                from hvdtrain.launch.rendezvous import rendezvous

                address = nic.address if nic is not None else "127.0.0.1"
                server = stack.enter_context(rendezvous(address, size))
                env = {**env, **_store_variables(address, server.server_port, size)}
            command = self.command
            signal, endings = command.checkpoint_signal, command.endings
            here = not self.request.remote
            return run_job(command.words, env, signal, stopped, endings, recall, here)


def launch_request(
    arguments: Sequence[str],
    env: Mapping[str, str],
    *,
    hosts: str | None = None,
    hostfile: Path | None = None,
    launcher: Launcher | Literal["auto"] = "auto",
    controller: Controller | None = None,
    forward: Sequence[str] = (),
    pool: Pool | None = None,
) -> LaunchRequest:
    """Decide what starts where: on `hosts` (or those of `hostfile`), else in the Slurm job of `env`.

    `arguments`: what each rank runs after `hvdtrain`. `launcher` auto: srun in a Slurm job, else
    mpirun. `controller` None: gloo with srun, else mpi. `forward`: more variables of `env` to
    forward. `pool`: of the hosts, those that are used now. Raises ConfigError, or ResourceError if Slurm's variables are not as expected.
    """
    in_slurm = in_allocation(env) and hosts is None and hostfile is None
    placement = placement_of(env, hosts, hostfile) if pool is None else pool.placement()
    if launcher == "auto":
        launcher = "srun" if in_slurm else "mpirun"
    if launcher == "srun" and not in_slurm:
        raise ConfigError(
            "--launcher srun: works only in a Slurm job and without --hosts: see sbatch, salloc"
        )
    return LaunchRequest(
        placement,
        (*own_command(), *arguments),
        launcher,
        controller or ("gloo" if launcher == "srun" else "mpi"),
        tuple(forwarded(env, forward)),
        remote=not _all_here(placement, env),
        in_slurm=in_slurm,
        part=pool is not None and pool.is_part,
    )


def placement_of(
    env: Mapping[str, str], hosts: str | None = None, hostfile: Path | None = None
) -> Placement:
    """All ranks on all hosts: the given ones, else those of the Slurm job. Raises ConfigError,
    ResourceError."""
    if in_allocation(env) and hosts is None and hostfile is None:
        return slurm_placement(env)
    return place(given_hosts(hosts, hostfile))


def prepare(
    request: LaunchRequest, env: Mapping[str, str], interface: str = "auto", *, horovod: bool = True
) -> Job:
    """Choose the network between the hosts and build the launcher's command line.

    `interface` is the config's `comm.interface`; `horovod`: it may join the ranks. All ranks are given the
    speed of this host's card. Raises ConfigError if the launcher cannot do what
    is asked, CommError if no network leads to the other hosts, ResourceError if the launcher is
    not installed.
    """
    if request.remote or interface != "auto":
        peers = [host.name for host in request.placement.hosts]
        request = replace(request, nic=choose(interface, peers))
    if (nic := request.network) is not None and nic.speed_mbit:
        env = {LINK_GBIT: f"{nic.speed_mbit / 1000:g}", **env}
        request = replace(request, names=tuple(sorted({*request.names, LINK_GBIT})))
    if request.launcher == "horovodrun":  # it puts its whole environment on ssh's command line
        kept = {*HOROVODRUN_NEEDS, *request.names}
        env = {name: value for name, value in env.items() if name in kept}
    if request.in_slurm and request.launcher == "mpirun":
        # After a node is lost, the step of the daemons lives on; those of the next attempt would wait for it.
        env = {"SLURM_OVERLAP": "1", **env}
    gloo_by_srun = request.launcher == "srun" and request.controller == "gloo"
    needs_store = gloo_by_srun and request.placement.size > 1 and horovod
    return Job(request, launcher_command(request), env, needs_store)


def keep_store(file: Path, ranks: int, env: Mapping[str, str], interface: str = "auto") -> None:
    """Keep the store of a Slurm job open until all `ranks` have joined.

    Writes the variables that the ranks need to `file`. Raises CommError, ResourceError.
    """
    from hvdtrain.launch.rendezvous import rendezvous

    nodes = node_names(env.get("SLURM_JOB_NODELIST", "localhost"))
    several = len(nodes) > 1 or interface != "auto"
    address = choose(interface, nodes).address if several else "127.0.0.1"
    with rendezvous(address, ranks) as server:
        variables = _store_variables(address, server.server_port, ranks)
        text = "".join(f"{name}={value}\n" for name, value in variables.items())
        write_atomically(file, text.encode())
        server.all_joined.wait()


def _require_leave_for_root(request: LaunchRequest, env: Mapping[str, str]) -> None:
    """Raise ConfigError where mpirun would refuse root, which it does in 14 lines."""
    by_mpirun = request.launcher == "mpirun" or (
        request.launcher == "horovodrun" and request.controller == "mpi"
    )
    if by_mpirun and os.geteuid() == 0 and any(env.get(name) != "1" for name in AS_ROOT):
        raise ConfigError(
            "launch: mpirun does not run as root unless you allow it: start as another user, or "
            f"first export {' '.join(f'{name}=1' for name in AS_ROOT)}"
        )


def _store_variables(address: str, port: int, ranks: int) -> dict[str, str]:
    return {RENDEZVOUS: f"{address}:{port}", RANKS: str(ranks)}


def _all_here(placement: Placement, env: Mapping[str, str]) -> bool:
    here = ("localhost", "127.0.0.1", socket.gethostname(), env.get("SLURMD_NODENAME"))
    return len(placement.hosts) == 1 and placement.hosts[0].name in here
