"""Refuse variables of a launcher that is not there: left over in a shell, or odd.

MPI would abort or wait for ever with them, and every rank of a launcher that hvdtrain does not know
would train by itself.
"""

from __future__ import annotations

import os
import re
import socket
import time
from collections.abc import Mapping
from pathlib import Path

from hvdtrain.errors import CommError
from hvdtrain.launch.slurm_task import RANKS, RENDEZVOUS
from hvdtrain.launch.torch_task import torch_task
from hvdtrain.launch.variables import (
    HOROVOD_SIZE,
    MPI_SIZES,
    SIZES,
    SLURM_TASKS,
    TORCH,
    TORCH_SIZE,
    TORCHRUN,
    by_torchrun,
    launched_size,
)

OMPI_SIZE, PMI_SIZE = MPI_SIZES
COUNTS = (*SIZES, RANKS, TORCH_SIZE)
RANK_OF = {
    "HOROVOD_RANK": (HOROVOD_SIZE,),
    "OMPI_COMM_WORLD_RANK": (OMPI_SIZE,),
    "PMI_RANK": (PMI_SIZE,),
    "PMIX_RANK": (OMPI_SIZE, PMI_SIZE, SLURM_TASKS),
}
"""Variable with a rank → variables one of which gives the number of ranks."""
GLOO = (
    "HOROVOD_RANK",
    "HOROVOD_LOCAL_RANK",
    "HOROVOD_LOCAL_SIZE",
    "HOROVOD_CROSS_RANK",
    "HOROVOD_CROSS_SIZE",
    "HOROVOD_GLOO_RENDEZVOUS_ADDR",
    "HOROVOD_GLOO_RENDEZVOUS_PORT",
)
"""What Horovod needs beside HOROVOD_SIZE, which only its gloo controller reads."""
PMI_MARKS = ("PMI_FD", "PMI_PORT", "PMI_CONTROL_PORT", "PMI_JOBID", "SLURM_STEP_ID")
"""One of them is set where a PMI launcher runs."""
PMIX_SERVER = "PMIX_SERVER_URI"
"""Beginning of the names of the variables with the address of the launcher's daemon."""
STORE_WAIT_S = 10.0
"""Longest wait for an answer of the store. It is open before any rank is started."""


def require_launcher(env: Mapping[str, str]) -> None:
    """Raise CommError, with the variable's name, unless the launcher that `env` tells of is there.

    To be called before Horovod and MPI are imported, and after `horovod_variables` was applied.
    """
    size = launched_size(env)
    if by_torchrun(env):
        if size > 1:
            _require_torch_store(env)
        return
    _require_one_size(env, size)
    if size == 1:
        _require_alone(env)
    elif HOROVOD_SIZE in env:
        _require_store(env, size)
    elif OMPI_SIZE in env or "PMIX_RANK" in env:
        _require_daemon(env)
    elif PMI_SIZE in env:
        _require_pmi(env, size)


def require_counts(env: Mapping[str, str]) -> None:
    """Raise CommError if a number of ranks is not a number."""
    for name in COUNTS:
        value = env.get(name, "1")
        if not (value.isascii() and value.isdigit() and int(value) > 0):
            found = f"found {value!r}" if value else "it is set, but empty"
            raise CommError(f"{name}: expected a number of ranks, {found}: {_unset(name)}")


def _require_one_size(env: Mapping[str, str], size: int) -> None:
    """What a launcher says must not contradict another: one of them is left over.

    Slurm's number and PMI_SIZE may belong to the step in which mpirun runs.
    """
    ours = next((name for name in SIZES if name in env), None)
    others = [name for name in (HOROVOD_SIZE, OMPI_SIZE) if name in env and name != ours]
    if TORCHRUN in env and TORCH_SIZE in env:
        others.append(TORCH_SIZE)
    if (ours == OMPI_SIZE and not _servers(env)) or (
        ours in (HOROVOD_SIZE, PMI_SIZE) and size == 1
    ):
        others.append(SLURM_TASKS)
    for name in others:
        if ours is not None and int(env.get(name, size)) != size:
            left = TORCHRUN if name == TORCH_SIZE else name if size > 1 else ours
            raise CommError(
                f"{ours}={size}, but {name}={env[name]}: only one launcher can have started this "
                f"process: {_unset(left)}"
            )


def _servers(env: Mapping[str, str]) -> dict[str, str]:
    """The variables with addresses of an MPI launcher's daemon."""
    return {name: uri for name, uri in env.items() if name.startswith(PMIX_SERVER)}


def _require_alone(env: Mapping[str, str]) -> None:
    for name, sizes in RANK_OF.items():
        if name in env and not any(size in env for size in sizes):
            raise CommError(
                f"{name}={env[name]}, but {' or '.join(sizes)} is not set, so the number of ranks is "
                f"not known: {_unset(name)}"
            )
    if int(env.get(RANKS, "1")) > 1 and RENDEZVOUS in env and SLURM_TASKS not in env:
        raise CommError(
            f"{RENDEZVOUS} is set for {env[RANKS]} ranks, but srun did not start this process "
            f"({SLURM_TASKS} is not set): {_unset(RENDEZVOUS)}"
        )
    torch = int(env.get(TORCH_SIZE, "1"))
    ranks = [name for name in ("RANK", "LOCAL_RANK") if env.get(name, "0").strip("0").isdigit()]
    if torch > 1 or (TORCHRUN in env and TORCH_SIZE not in env) or ranks:
        name = TORCH_SIZE if torch > 1 else next(iter(ranks), TORCHRUN)
        missing = next(name for name in TORCH if not env.get(name))
        raise CommError(
            f"{name}={env[name]}, but {missing} is not set, so torchrun did not start this process, and "
            f"each of several ranks would train by itself: start with torchrun, hvdtrain launch or mpirun, or "
            f"unset {name}"
        )


def _require_store(env: Mapping[str, str], size: int) -> None:
    missing = [name for name in GLOO if not env.get(name)]
    if missing:
        raise CommError(
            f"{HOROVOD_SIZE}={size}, but {missing[0]} is not set, so no horovodrun started this "
            f"process: {_unset(HOROVOD_SIZE)}"
        )
    host, port = (env[name] for name in GLOO[-2:])
    name = RENDEZVOUS if RENDEZVOUS in env and SLURM_TASKS in env else GLOO[-2]
    if not port.isdigit() or not 0 < int(port) < 65536:
        raise CommError(f"{GLOO[-1]}: expected a port, found {port!r}: {_unset(HOROVOD_SIZE)}")
    if (reason := _no_answer(host, int(port))) is not None:
        raise CommError(
            f"{name}: the store of the ranks at {host}:{port} does not answer ({reason}): the "
            f"launcher has ended or the variable is left over: {_unset(name)}"
        )


def _require_torch_store(env: Mapping[str, str]) -> None:
    task = torch_task(env)
    if task.kept and (reason := _no_answer(task.address, task.port)) is not None:
        raise CommError(
            f"{TORCHRUN}={env[TORCHRUN]}, but torchrun's store at {task.address}:{task.port} (MASTER_ADDR, "
            f"MASTER_PORT) does not answer ({reason}): torchrun has ended or the variables are left over: "
            f"{_unset(TORCH_SIZE)}"
        )


def _no_answer(host: str, port: int) -> str | None:
    """Why nobody accepts connections there; None if somebody does."""
    deadline = time.monotonic() + STORE_WAIT_S
    while True:
        try:
            with socket.create_connection((host, port), timeout=STORE_WAIT_S / 2):
                return None
        except OSError as error:
            if time.monotonic() > deadline - STORE_WAIT_S / 2 or isinstance(error, socket.gaierror):
                return error.strerror or "no answer in time"
        time.sleep(1)


def _require_daemon(env: Mapping[str, str]) -> None:
    name = OMPI_SIZE if OMPI_SIZE in env else "PMIX_RANK"
    what, servers = f"{name}={env[name]}", _servers(env)
    if not servers and "OMPI_MCA_orte_hnp_uri" not in env:
        raise CommError(
            f"{what}, but no MPI launcher started this process ({PMIX_SERVER}… is not set): "
            f"{_unset(name)}"
        )
    for server, uri in servers.items():
        match = re.search(r";tcp4?://127\.\d+\.\d+\.\d+:(\d+)$", uri)
        if match and not _listening(int(match[1])):
            raise CommError(
                f"{what}, but the launcher that set it has ended (nobody listens at "
                f"{server}={uri}): {_unset(name)}"
            )


def _listening(port: int) -> bool:
    """Whether some process of this host listens on the TCP port; True if that cannot be known.

    A look at the kernel's table does not disturb the daemon, as a connection would.
    """
    try:
        rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    except OSError:
        return True
    return any(row[3] == "0A" and int(row[1].rpartition(":")[2], 16) == port for row in rows)


def _require_pmi(env: Mapping[str, str], size: int) -> None:
    if not any(name in env for name in PMI_MARKS):
        raise CommError(
            f"{PMI_SIZE}={size}, but no MPI launcher started this process ({', '.join(PMI_MARKS[:2])} "
            f"and others like it are not set): {_unset(PMI_SIZE)}"
        )
    descriptor = env.get("PMI_FD", "")
    if descriptor.isdigit():
        try:
            os.fstat(int(descriptor))
        except OSError:
            raise CommError(
                f"{PMI_SIZE}={size}, but PMI_FD={descriptor} is not open: the launcher has ended: "
                f"{_unset(PMI_SIZE)}"
            ) from None


def _unset(name: str) -> str:
    """What to do about `name`; with a number of ranks goes the variable with the rank."""
    rank = next((rank for rank, (size, *_) in RANK_OF.items() if size == name), "")
    return (
        f"unset {name} {rank}".rstrip() + " to train in one process, or start the ranks with "
        "hvdtrain launch, mpirun, horovodrun or srun"
    )
