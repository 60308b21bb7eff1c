"""Joining the job that a launcher started."""

from __future__ import annotations

import json
import os
import socket

import torch

from hvdtrain.comm.cores import idle_text, own_group, quotas_of, share_of
from hvdtrain.comm.engines import choose_engine
from hvdtrain.comm.horovod import BrokenBuild, Horovod, settings
from hvdtrain.comm.ranks import Comm, Solo
from hvdtrain.config.schema import Engine
from hvdtrain.errors import CommError
from hvdtrain.launch.leftovers import require_counts, require_launcher
from hvdtrain.launch.nic import use_interface
from hvdtrain.launch.slurm_task import horovod_variables, report_joined
from hvdtrain.launch.torch_task import torch_task
from hvdtrain.launch.variables import launched_size
from hvdtrain.streams import print_error_line
from hvdtrain.versions import GET_HOROVOD


def init_comm(
    interface: str = "auto",
    stall_s: float = 600.0,
    engine: Engine = "auto",
    *,
    link_gbit: float | None = None,
) -> Comm:
    """Join the ranks that the launcher started; without a launcher, a job of one rank.

    The arguments are the config's `comm.interface`, `train.stall_timeout`, `comm.engine` and
    `comm.link_gbit`. Raises CommError if this host has no such interface, if the engine cannot join these
    ranks or sees another number of them than the launcher started, or if variables tell of a launcher that
    is not there.
    """
    require_counts(os.environ)
    choice = choose_engine(engine, os.environ) if launched_size(os.environ) > 1 else None
    if choice is None or choice.engine == "horovod":
        os.environ.update(horovod_variables(os.environ))
    require_launcher(os.environ)
    if choice is None:
        return Solo()
    if choice.engine == "horovod":
        comm = _horovod(interface, stall_s, choice.why, link_gbit)
    else:
        comm = _torch(interface, stall_s, choice.why)
    report_joined(os.environ)
    return comm


def _horovod(interface: str, stall_s: float, why: str, link_gbit: float | None) -> Comm:
    expected = launched_size(os.environ)
    cpu = not torch.cuda.is_available()
    found = settings(os.environ, cpu=cpu, stall_s=stall_s, link_gbit=link_gbit)
    for name, value in found.items():
        os.environ.setdefault(name, value)
    use_interface(interface)
    try:
        comm = Horovod(why)
    except BrokenBuild as error:
        raise CommError(
            f"started as {expected} ranks, but {error}: start them with torchrun, which needs none, or {GET_HOROVOD}"
        ) from None
    if comm.size != expected:
        raise CommError(
            f"the launcher started {expected} ranks, but Horovod sees {comm.size}, so each would "
            "train by itself: was Horovod built with this launcher's MPI? See hvdtrain doctor"
        )
    return comm


def _torch(interface: str, stall_s: float, why: str) -> Comm:
    from hvdtrain.comm.torch_distributed import TorchDistributed

    task = torch_task(os.environ)
    nic = use_interface(interface)
    if (
        nic is None
    ):  # all ranks are on this host, where its name may lead to an address that is down
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    return TorchDistributed(task, why, nic.address if nic else "127.0.0.1", stall_s)


def cores_for_rank(comm: Comm) -> int:
    """Number of cores for this rank: those it is bound to, shared with ranks bound to the same.

    A launcher may bind each rank to cores of its own, or let all ranks of a host use all cores. A CPU
    quota is shared by the ranks in its control group; Slurm can give each rank a group of its own.
    """
    mine = sorted(os.sched_getaffinity(0))
    host = socket.gethostname()
    quotas = quotas_of(own_group())
    texts = comm.gather_text(json.dumps([host, mine, list(quotas)]))
    here = [(cores, groups) for name, cores, groups in map(json.loads, texts) if name == host]
    sets = [frozenset(cores) for cores, _groups in here]
    if comm.local_rank == 0 and (text := idle_text(_cores_of_launcher(), sets)):
        print_error_line(f"hvdtrain: warning: {host}: {text}")
    return share_of(mine, sets, quotas, [groups for _cores, groups in here])


def _cores_of_launcher() -> set[int]:
    """The cores that the process which started this one may use; mpirun does not bind itself."""
    try:
        return os.sched_getaffinity(os.getppid())
    except OSError:
        return set()
