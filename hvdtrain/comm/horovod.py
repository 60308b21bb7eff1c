"""Ranks joined by Horovod: the only module that imports it, or MPI."""

from __future__ import annotations

import contextlib
import io
import re
import socket
import time
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import torch

from hvdtrain.comm.ranks import Handle, rank_gone
from hvdtrain.errors import CommError, SumRefused
from hvdtrain.launch.links import slow_link_settings
from hvdtrain.launch.variables import on_several_hosts
from hvdtrain.versions import GET_HOROVOD

DEFAULTS = {
    "HOROVOD_STALL_CHECK_TIME_SECONDS": "60",  # name a stalled rank after one minute
    # The default of 30 s is shorter than the first import on a busy node.
    "HOROVOD_GLOO_TIMEOUT_SECONDS": "300",
    # The reducer groups gradients itself; fusing the groups would copy every gradient twice.
    "HOROVOD_FUSION_THRESHOLD": "0",
}
CPU_DEFAULTS = {
    # Open MPI's progress thread busy-waits on the core that computes.
    "OMPI_MCA_mpi_yield_when_idle": "1",
}
NETWORK_DEFAULTS = {
    # Send messages up to this size at once; by default each first waits for the receiver's consent.
    "OMPI_MCA_btl_tcp_eager_limit": "524288",
    "OMPI_MCA_btl_tcp_max_send_size": "524288",
}


STALL_FACTOR = 8
"""Horovod's own limit, in times of the watchdog's; that one waits up to six times before a first step."""

PEER_GONE = re.compile(
    "has been shut down|connection closed|connection reset|missing connection|broken pipe"
    "|timed out|remote process",
    re.IGNORECASE,
)
"""What Horovod, Gloo and NCCL say when a rank has ended or cannot be reached; they report wrong use
and faults of a GPU by the same type of error."""


MISMATCHED = re.compile("mismatched (allreduce|alltoall) tensor shapes", re.IGNORECASE)
"""What Horovod says where ranks offer tensors of different shapes under one name."""


class BrokenBuild(Exception):
    """Horovod is missing, was built without torch or MPI, or against other versions of them."""


def import_horovod() -> Any:
    """The module `horovod.torch`. Raises BrokenBuild, whose text is one line without an end."""
    said = io.StringIO()
    try:
        # It prints why it was built without torch, and is then a module without functions.
        with contextlib.redirect_stdout(said):
            import horovod.torch as hvd

        for name in ("init", "allreduce_async_", "mpi_built", "gloo_built", "nccl_built"):
            getattr(hvd, name)
    # A build against another torch or MPI fails in the loader of libraries, or lacks names.
    except (ImportError, OSError, AttributeError, RuntimeError) as error:
        if "has not been built" in said.getvalue():
            raise BrokenBuild("Horovod was built without torch, so its build has failed") from None
        text = " ".join((said.getvalue().strip() or str(error)).split())[:300]
        raise BrokenBuild(f"Horovod cannot be imported ({text})") from None
    return hvd


class Horovod:
    """The ranks of a Horovod job. Raises CommError where a peer is gone."""

    engine = "horovod"

    def __init__(self, why: str = "") -> None:
        hvd = import_horovod()
        self.why = why
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

    def all_to_all_async(self, rows: torch.Tensor, received: torch.Tensor, name: str) -> Handle:
        """Start an all-to-all; Horovod has no bf16, so as bytes."""
        with self._named(name):
            handle = self._hvd.alltoall_async(rows.view(torch.uint8), name=name)
        return _HorovodHandle(self, handle, name, received.view(torch.uint8))

    def all_gather_async(self, row: torch.Tensor, rows: torch.Tensor, name: str) -> Handle:
        """Start an allgather, as bytes."""
        with self._named(name):
            handle = self._hvd.allgather_async(row.view(torch.uint8)[None], name=name)
        return _HorovodHandle(self, handle, name, rows.view(torch.uint8))

    def refuse(self, sums: Mapping[str, torch.Tensor], all_to_all: Collection[str] = ()) -> None:
        """Offer tensors of another length: Horovod compares lengths before it begins, and tells all ranks."""
        handles: list[Handle] = []
        for name, tensor in sums.items():
            if name in all_to_all:  # another collective than the others' would end the job
                rows = tensor.new_zeros(self.size, tensor.shape[1] + 1)
                handles.append(self.all_to_all_async(rows, rows.clone(), name))
            else:
                other = tensor.new_zeros(1 if tensor.numel() != 1 else 2)
                handles.append(self.sum_async_(other, name))
        for handle in handles:
            with contextlib.suppress(SumRefused):
                handle.wait()

    def gather(self, row: torch.Tensor, name: str) -> torch.Tensor:
        """One allgather."""
        with self._named(name):
            rows: torch.Tensor = self._hvd.allgather(row[None], name=name)
        return rows

    def broadcast_(self, tensors: Mapping[str, torch.Tensor], root: int = 0) -> None:
        """Broadcast all tensors at once; strided ones through a flat copy."""
        started = []
        for name, tensor in tensors.items():
            flat = tensor.detach().reshape(-1).contiguous()
            wire = flat.to(torch.uint8) if flat.dtype == torch.bool else flat
            with self._named(name):
                handle = self._hvd.broadcast_async_(wire, root_rank=root, name=f"broadcast.{name}")
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
        """Horovod's errors as CommError; `what` is the collective. Any other error is itself."""
        try:
            yield
        except self._internal_error as error:
            text = " ".join(str(error).split())
            where = f"{what} on {socket.gethostname()}"
            if MISMATCHED.search(text):
                raise SumRefused(f"{where}: {text}") from error
            if not PEER_GONE.search(text):
                raise CommError(f"{where}: {text}") from error
            raise rank_gone(where, text) from error


class _HorovodHandle:
    def __init__(
        self, comm: Horovod, handle: Any, name: str, out: torch.Tensor | None = None
    ) -> None:
        """`out`: where the result goes of a collective that is not in place."""
        self._comm, self._handle, self._name, self._out = comm, handle, name, out

    def wait(self) -> None:
        with self._comm._named(self._name):
            # Horovod's own wait spins, on a core that decoding or the sums may need.
            began = time.perf_counter()
            while not self._comm._hvd.poll(self._handle):
                time.sleep(max(5e-5, (time.perf_counter() - began) / 500))
            result = self._comm._hvd.synchronize(self._handle)
        if self._out is not None:
            self._out.copy_(result[0] if isinstance(result, tuple) else result)


def stall_limit_s(stall_s: float) -> int:
    """After how many seconds a collective that stands still ends by itself; 0: never. See STALL_FACTOR."""
    return 0 if stall_s == 0 else round(min(max(STALL_FACTOR * stall_s, 600), 1e9))


def settings(
    env: Mapping[str, str], *, cpu: bool, stall_s: float = 600.0, link_gbit: float | None = None
) -> dict[str, str]:
    """Environment variables for Horovod and Open MPI; those that the user has set take precedence.

    `link_gbit`: the config's `comm.link_gbit`.

    `stall_s`: the config's `train.stall_timeout`. Horovod notices only some stalls, and ends the
    others with an error that does not say why: it waits until the watchdog has had its time.
    """
    found = DEFAULTS | (CPU_DEFAULTS if cpu else {})
    found["HOROVOD_STALL_SHUTDOWN_TIME_SECONDS"] = str(stall_limit_s(stall_s))
    if on_several_hosts(env):
        found |= NETWORK_DEFAULTS | slow_link_settings(env, link_gbit)
    return found


def horovod_features() -> dict[str, bool | str]:
    """Version and build features of the installed Horovod; raises CommError if it cannot be imported."""
    try:
        hvd = import_horovod()
        import horovod
    except BrokenBuild as error:
        raise CommError(f"{error}: {GET_HOROVOD}") from None
    return {
        "version": horovod.__version__,
        "mpi": hvd.mpi_built(),
        "gloo": hvd.gloo_built(),
        "nccl": bool(hvd.nccl_built()),
        "cuda": hvd.cuda_built(),
    }


def mpi_broadcast(text: str) -> str:
    """The text of rank 0, on every rank that mpirun started; MPI is started for it, and ended.

    Raises BrokenBuild without mpi4py or an MPI library.
    """
    try:
        import mpi4py

        mpi4py.rc.initialize = mpi4py.rc.finalize = False
        from mpi4py import MPI
    except (ImportError, OSError, RuntimeError) as error:
        raise BrokenBuild(f"mpi4py cannot be imported ({error})") from None
    MPI.Init()
    shared: str = MPI.COMM_WORLD.bcast(text, root=0)
    MPI.Finalize()
    return shared


def mpi_library() -> str:
    """Name and version of the MPI library, without starting MPI.

    Raises CommError if mpi4py or MPI is not installed.
    """
    try:
        import mpi4py

        mpi4py.rc.initialize = False
        from mpi4py import MPI
    except (
        ImportError,
        OSError,
        RuntimeError,
    ) as error:  # the latter where there is no MPI library
        raise CommError(f"mpi4py cannot be imported ({error}): {GET_HOROVOD}") from None

    return MPI.Get_library_version().split("\n")[0].split(",")[0].strip("\0 ")
