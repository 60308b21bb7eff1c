"""Which of the two engines joins the ranks: Horovod or torch.distributed.

Every rank decides by itself, so only what is the same on all of them counts: the config, the launcher's
variables, and, where these leave both open, whether Horovod is installed.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from hvdtrain.config.schema import Engine
from hvdtrain.errors import CommError
from hvdtrain.launch.slurm_task import RENDEZVOUS
from hvdtrain.launch.variables import (
    HOROVOD_SIZE,
    MPI_MARKS,
    MPI_SIZES,
    SLURM_TASKS,
    by_torchrun,
    launched_size,
)


@dataclass(frozen=True)
class Choice:
    """The engine of a job of several ranks, and why it is that one."""

    engine: Literal["horovod", "torch"]
    why: str


def horovod_installed() -> bool:
    """Whether there is a Horovod, be it one that works or not; imports nothing."""
    try:
        return importlib.util.find_spec("horovod") is not None
    except ValueError:
        return False


def launcher_of(env: Mapping[str, str]) -> str:
    """The launcher that started this one of several ranks, as a user calls it."""
    if by_torchrun(env):
        return "torchrun"
    if HOROVOD_SIZE in env:
        return "horovodrun"
    if SLURM_TASKS in env and MPI_SIZES[0] not in env:
        return "srun"
    return "mpirun"


def choose_engine(
    wanted: Engine,
    env: Mapping[str, str],
    installed: Callable[[], bool] = horovod_installed,
) -> Choice:
    """The engine for one of several ranks; `wanted` is the config's `comm.engine`.

    Raises CommError if the launcher cannot start the ranks of the engine that is wanted.
    """
    launcher, ranks = launcher_of(env), launched_size(env)
    # Horovod finds its ranks through MPI or through a store of its own.
    joined = any(name in env for name in (*MPI_MARKS, HOROVOD_SIZE, RENDEZVOUS))
    started = f"{launcher} started the {ranks} ranks"
    if wanted == "torch":
        if launcher == "horovodrun":
            raise CommError(
                f"comm.engine: torch, but {started}, which torch.distributed cannot join: start them "
                "with torchrun, mpirun or srun, or set comm.engine=horovod"
            )
        return Choice("torch", "by comm.engine")
    if launcher == "torchrun":
        if wanted == "horovod":
            raise CommError(
                f"comm.engine: horovod, but {started}, which Horovod cannot join: start them with "
                "hvdtrain launch, mpirun or horovodrun, or set comm.engine=torch"
            )
        return Choice("torch", f"as {started}")
    if wanted == "horovod":
        return Choice("horovod", "by comm.engine")
    if launcher != "srun":
        return Choice("horovod", f"as {started}")
    if not joined:
        return Choice("torch", f"as {started}, without MPI and without hvdtrain launch")
    if RENDEZVOUS in env or installed():
        return Choice("horovod", f"as {started}")
    return Choice("torch", f"as {started}, and Horovod is not installed")
