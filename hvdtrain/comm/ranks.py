"""The ranks: who they are, and every collective the project uses.

The only module that imports Horovod. `Solo` is the one-process twin for plain `python`.
Collectives must be called by every rank in the same order.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import torch

from hvdtrain.errors import CommError
from hvdtrain.launch.nic import use_interface
from hvdtrain.launch.slurm_task import horovod_variables, tell_joined

SIZE_VARIABLES = ("HOROVOD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS")
"""Where launchers say how many ranks they started. Slurm's other counts are set in batch scripts,
too, where there is one process."""

DEFAULTS = {
    # A stalled rank is named after one minute and the job ended after ten; Horovod's own
    # default is to wait for ever.
    "HOROVOD_STALL_CHECK_TIME_SECONDS": "60",
    "HOROVOD_STALL_SHUTDOWN_TIME_SECONDS": "600",
    # 30 s, the default, is shorter than the first import of a busy node.
    "HOROVOD_GLOO_TIMEOUT_SECONDS": "300",
    # The reducer makes its own groups; fusing them again would copy every gradient twice.
    "HOROVOD_FUSION_THRESHOLD": "0",
}
CPU_DEFAULTS = {
    # Open MPI's progress thread busy-waits on the core that computes.
    "OMPI_MCA_mpi_yield_when_idle": "1",
}
NETWORK_DEFAULTS = {
    # Gradients go round in messages of 256 KiB by third_party/horovod/0003-mpi-ring.patch.
    "HOROVOD_MPI_RING_BYTES": "262144",
    # They go at once; by default each would first ask the receiver and wait for its answer.
    "OMPI_MCA_btl_tcp_eager_limit": "524288",
    "OMPI_MCA_btl_tcp_max_send_size": "524288",
}


class Handle(Protocol):
    """A collective under way."""

    def wait(self) -> None:
        """Block until the result is in the tensor that was handed in."""


class Comm(Protocol):
    """What the trainer needs of its ranks; ranks are 0 … size-1."""

    rank: int
    size: int
    local_rank: int
    local_size: int

    def sum_async_(self, tensor: torch.Tensor, name: str) -> Handle:
        """Start to sum `tensor` over all ranks, in place; `name` pairs the calls."""

    def sum_(self, tensor: torch.Tensor, name: str) -> torch.Tensor:
        """Sum `tensor` over all ranks, in place, and return it."""

    def gather(self, row: torch.Tensor, name: str) -> torch.Tensor:
        """The `row` [n] of every rank, equally long on all, on every rank: [size, n]."""

    def broadcast_(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Give every rank the values of rank 0, in place."""

    def gather_text(self, text: str) -> list[str]:
        """The text of every rank, in rank order, on every rank."""

    def shutdown(self) -> None:
        """Leave the job; no collective may follow."""


class Solo:
    """A job of one rank, without Horovod."""

    rank = 0
    size = 1
    local_rank = 0
    local_size = 1

    def sum_async_(self, tensor: torch.Tensor, name: str) -> Handle:
        """Nothing to add."""
        return _Done()

    def sum_(self, tensor: torch.Tensor, name: str) -> torch.Tensor:
        """Nothing to add."""
        return tensor

    def gather(self, row: torch.Tensor, name: str) -> torch.Tensor:
        """The one row."""
        return row[None]

    def broadcast_(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Rank 0 is the only one."""

    def gather_text(self, text: str) -> list[str]:
        """The one text."""
        return [text]

    def shutdown(self) -> None:
        """Nothing to leave."""


class _Done:
    def wait(self) -> None:
        return


class Horovod:
    """The ranks of a Horovod job. Raises CommError where a peer is gone."""

    def __init__(self) -> None:
        import horovod.torch as hvd
        from horovod.common.exceptions import HorovodInternalError

        self._hvd = hvd
        self._internal_error = HorovodInternalError
        with self._named("start of Horovod"):
            hvd.init()
        self.rank: int = hvd.rank()
        self.size: int = hvd.size()
        self.local_rank: int = hvd.local_rank()
        self.local_size: int = hvd.local_size()

    def sum_async_(self, tensor: torch.Tensor, name: str) -> Handle:
        """Start an in-place sum; the tensor must be contiguous."""
        with self._named(name):
            handle = self._hvd.allreduce_async_(tensor, name=name, op=self._hvd.Sum)
        return _HorovodHandle(self, handle, name)

    def sum_(self, tensor: torch.Tensor, name: str) -> torch.Tensor:
        """Sum in place and wait."""
        self.sum_async_(tensor, name).wait()
        return tensor

    def gather(self, row: torch.Tensor, name: str) -> torch.Tensor:
        """One allgather."""
        with self._named(name):
            rows: torch.Tensor = self._hvd.allgather(row[None], name=name)
        return rows

    def broadcast_(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Broadcast all tensors at once; strided ones go by way of a flat copy."""
        started = []
        for name, tensor in tensors.items():
            flat = tensor.detach().reshape(-1).contiguous()
            wire = flat.to(torch.uint8) if flat.dtype == torch.bool else flat
            with self._named(name):
                handle = self._hvd.broadcast_async_(wire, root_rank=0, name=f"broadcast.{name}")
            started.append((tensor, wire, _HorovodHandle(self, handle, name)))
        for tensor, wire, waiting in started:
            waiting.wait()
            if wire.data_ptr() != tensor.data_ptr():
                with torch.no_grad():
                    tensor.copy_(wire.reshape(tensor.shape))

    def gather_text(self, text: str) -> list[str]:
        """Two allgathers: lengths, then bytes."""
        data = torch.frombuffer(bytearray(text.encode()) or bytearray(1), dtype=torch.uint8)
        length = len(text.encode())
        with self._named("gather_text"):
            lengths = self._hvd.allgather(torch.tensor([length, len(data)]), name="text.lengths")
            joined = self._hvd.allgather(data, name="text.bytes").numpy().tobytes()
        texts, offset = [], 0
        for used, sent in lengths.reshape(-1, 2).tolist():
            texts.append(joined[offset : offset + used].decode())
            offset += sent
        return texts

    def shutdown(self) -> None:
        """End Horovod on this rank."""
        self._hvd.shutdown()

    @contextlib.contextmanager
    def _named(self, what: str) -> Iterator[None]:
        try:
            yield
        except (self._internal_error, RuntimeError) as error:
            reason = " ".join(str(error).split()).split(". ")[0]
            raise CommError(
                f"{what} on {socket.gethostname()}: another rank is gone or unreachable ({reason}); "
                "the launcher names the first that failed; go on with --resume auto"
            ) from None


class _HorovodHandle:
    def __init__(self, comm: Horovod, handle: Any, name: str) -> None:
        self._comm, self._handle, self._name = comm, handle, name

    def wait(self) -> None:
        with self._comm._named(self._name):
            # Horovod's own wait spins, on a core that decoding or the sums themselves may need.
            began = time.perf_counter()
            while not self._comm._hvd.poll(self._handle):
                time.sleep(max(5e-5, (time.perf_counter() - began) / 500))
            self._comm._hvd.synchronize(self._handle)


def launched(env: Mapping[str, str]) -> bool:
    """True if a launcher started this process, be it the only one."""
    return any(name in env for name in SIZE_VARIABLES)


def launched_size(env: Mapping[str, str]) -> int:
    """Ranks that the launcher says it started; 1 for a plain `python`."""
    return next((int(env[name]) for name in SIZE_VARIABLES if env.get(name, "").isdigit()), 1)


def settings(env: Mapping[str, str], *, cpu: bool) -> dict[str, str]:
    """Variables that Horovod and Open MPI read when they start, where the user set no others."""
    size = launched_size(env)
    here, nodes = env.get("OMPI_COMM_WORLD_LOCAL_SIZE", ""), env.get("SLURM_STEP_NUM_NODES", "")
    several_hosts = (here.isdigit() and int(here) < size) or (nodes.isdigit() and int(nodes) > 1)
    found = DEFAULTS | (CPU_DEFAULTS if cpu else {})
    if several_hosts:
        found |= NETWORK_DEFAULTS
    return found


def init_comm(interface: str = "auto") -> Comm:
    """Join the job that the launcher started, or stand alone without one.

    `interface` is the config's `comm.interface`. Raises CommError if this host has none such, or
    if Horovod finds another number of ranks than the launcher started.
    """
    os.environ.update(horovod_variables(os.environ))
    expected = launched_size(os.environ)
    if expected == 1:
        return Solo()
    for name, value in settings(os.environ, cpu=not torch.cuda.is_available()).items():
        os.environ.setdefault(name, value)
    use_interface(interface)
    try:
        comm = Horovod()
    except ImportError as error:
        raise CommError(
            f"started as {expected} ranks, but Horovod cannot be imported ({error}): run make setup"
        ) from None
    if comm.size != expected:
        raise CommError(
            f"the launcher started {expected} ranks, but Horovod sees {comm.size}, so each would "
            "train alone: was Horovod built with this launcher's MPI? See hvdtrain doctor"
        )
    tell_joined(os.environ)
    return comm


def cores_for_rank(comm: Comm) -> int:
    """Cores this rank may call its own: those it is bound to, shared with ranks bound alike.

    A launcher may bind each rank to its own cores, or let all ranks of a node roam over all.
    """
    mine = sorted(os.sched_getaffinity(0))
    host = socket.gethostname()
    others = [text.split("\n") for text in comm.gather_text(f"{host}\n{mine}")]
    sets = [frozenset(json.loads(cores)) for name, cores in others if name == host]
    return max(1, int(sum(1 / sum(core in cores for cores in sets) for core in mine)))


def horovod_features() -> dict[str, bool | str]:
    """What the installed Horovod was built with; raises CommError if it cannot be imported."""
    try:
        import horovod
        import horovod.torch as hvd
    except ImportError as error:
        raise CommError(f"Horovod cannot be imported ({error}): run make setup") from None
    return {
        "version": horovod.__version__,
        "mpi": hvd.mpi_built(),
        "gloo": hvd.gloo_built(),
        "nccl": bool(hvd.nccl_built()),
        "cuda": hvd.cuda_built(),
    }


def mpi_library() -> str:
    """First line of the MPI library's own version text, without starting MPI."""
    import mpi4py

    mpi4py.rc.initialize = False
    from mpi4py import MPI

    return MPI.Get_library_version().split("\n")[0].split(",")[0].strip("\0 ")
