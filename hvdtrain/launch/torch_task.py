"""Where torch.distributed finds the other ranks, by the variables of whatever started this one."""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass

from hvdtrain.errors import CommError
from hvdtrain.launch.allocation import node_names
from hvdtrain.launch.hosts import shown
from hvdtrain.launch.slurm_task import slurm_slot
from hvdtrain.launch.variables import MPI_SIZES, SLURM_TASKS, TORCH, TORCHRUN, by_torchrun

AGENT_STORE = "TORCHELASTIC_USE_AGENT_STORE"
"""`True` where torchrun itself keeps the store."""
PORTS = (20000, 30000)
"""The port of a Slurm step is in this range, below those that kernels assign."""


@dataclass(frozen=True)
class TorchTask:
    """One rank, and the store in which all ranks look each other up."""

    rank: int
    size: int
    local_rank: int
    local_size: int
    address: str = ""
    """Host of the store; empty: rank 0 chooses one, and MPI tells the others."""
    port: int = 0
    kept: bool = False
    """The launcher keeps the store; else rank 0 does."""

    @property
    def serves(self) -> bool:
        """This rank keeps the store."""
        return self.rank == 0 and not self.kept


def torch_task(env: Mapping[str, str]) -> TorchTask:
    """The task of this process. Raises CommError where its launcher does not say enough."""
    if by_torchrun(env):
        size, rank, local_size, local_rank = (number(env, name) for name in TORCH[:4])
        if rank >= size or local_rank >= local_size or local_size > size:
            raise CommError(
                f"RANK={rank} of WORLD_SIZE={size} and LOCAL_RANK={local_rank} of LOCAL_WORLD_SIZE="
                f"{local_size} do not fit: left over from another job? Unset {' '.join(TORCH[:4])}"
            )
        kept = TORCHRUN in env and env.get(AGENT_STORE) == "True"
        return TorchTask(rank, size, local_rank, local_size, *_given(env), kept=kept)
    if MPI_SIZES[0] in env:
        names = ("WORLD_RANK", "WORLD_SIZE", "WORLD_LOCAL_RANK", "WORLD_LOCAL_SIZE")
        rank, size, local_rank, local_size = (number(env, f"OMPI_COMM_{n}") for n in names)
        return TorchTask(rank, size, local_rank, local_size, *_given(env))
    if SLURM_TASKS in env:
        slot = slurm_slot(env)
        rank = number(env, "SLURM_PROCID")
        address, port = _given(env)
        if not address:
            address = first_node(env)
        return TorchTask(
            rank, slot.size, slot.local_rank, slot.local_size, address, port or _port(env)
        )
    raise CommError(
        "comm.engine: torch: this launcher does not say where the ranks are: start them with torchrun, "
        "mpirun or srun, or set comm.engine=horovod"
    )


def first_node(env: Mapping[str, str]) -> str:
    """The host of rank 0 of a Slurm step, which keeps the store."""
    if env.get("SLURM_STEP_NUM_NODES") == "1":
        return "127.0.0.1"
    return node_names(env.get("SLURM_STEP_NODELIST", ""), "SLURM_STEP_NODELIST")[0]


def number(env: Mapping[str, str], name: str) -> int:
    """The variable as a number. Raises CommError."""
    value = env.get(name, "")
    if not re.fullmatch("[0-9]{1,9}", value):
        raise CommError(f"{name}: expected a number, found '{shown(value)}'")
    return int(value)


def _given(env: Mapping[str, str]) -> tuple[str, int]:
    """Address and port by MASTER_ADDR and MASTER_PORT; nothing where they are not set."""
    address, text = env.get("MASTER_ADDR", ""), env.get("MASTER_PORT", "")
    if not address or not text:
        return address, 0
    port = number(env, "MASTER_PORT")
    if not 0 < port < 65536:
        raise CommError(f"MASTER_PORT: expected a port, found {port}")
    return address, port


def _port(env: Mapping[str, str]) -> int:
    """The same for all tasks of a step, and seldom that of another step on the same host."""
    text = f"{env.get('SLURM_JOB_ID', '')}.{env.get('SLURM_STEP_ID', '')}"
    return PORTS[0] + zlib.crc32(text.encode()) % (PORTS[1] - PORTS[0])
