"""Ranks joined by torch.distributed, with NCCL for tensors on GPUs and gloo for those of CPUs: the only module
that imports it."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Collection, Iterator, Mapping
from datetime import timedelta
from typing import Any

import torch
from torch import distributed

from hvdtrain.comm.horovod import PEER_GONE, BrokenBuild, mpi_broadcast, stall_limit_s
from hvdtrain.comm.ranks import Handle, rank_gone
from hvdtrain.errors import CommError, SumRefused
from hvdtrain.launch.torch_task import TorchTask

dist: Any = distributed  # its annotations lack some of its public names
JOIN_S = 300.0
"""Longest wait for the ranks at the start: as long as Horovod is given for it."""
NO_LIMIT_S = 1e9
DEFAULTS = {
    # NCCL's watchdog would end the process, and not say which rank is gone.
    "TORCH_NCCL_ASYNC_ERROR_HANDLING": "0",
}
"""Environment variables of torch; those that the user has set take precedence."""


class TorchDistributed:
    """The ranks of a job that torch.distributed has joined. Raises CommError where a peer is gone.

    torch matches collectives by their order, not by their names, so every rank must call them in the same.
    """

    engine = "torch"

    def __init__(
        self, task: TorchTask, why: str = "", address: str = "127.0.0.1", stall_s: float = 600.0
    ) -> None:
        """`address`: of this host, where other ranks can reach it. `stall_s`: see `settings` of Horovod."""
        self.rank, self.size = task.rank, task.size
        self.local_rank, self.local_size = task.local_rank, task.local_size
        self.why = why
        self._sums = 0
        """Sums started so far, the same number on every rank: it names a sum that is refused."""
        self._aside: torch.cuda.Stream | None = None
        for name, value in DEFAULTS.items():
            os.environ.setdefault(name, value)
        self._store = _store(task, address)
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        with self._named("start of torch.distributed"):
            dist.init_process_group(
                backend,
                store=self._store,
                rank=task.rank,
                world_size=task.size,
                timeout=timedelta(seconds=stall_limit_s(stall_s) or NO_LIMIT_S),
            )

    def sum_async_(self, tensor: torch.Tensor, name: str) -> Handle:
        """Start an in-place sum; the tensor must be contiguous."""
        number, self._sums = self._sums, self._sums + 1
        with self._named(name):
            work = dist.all_reduce(tensor.detach(), async_op=True)
        return _SumHandle(self, work, name, tensor.view(-1)[:1], number)

    def sum_(self, tensor: torch.Tensor, name: str) -> torch.Tensor:
        """Sum in place and wait."""
        self.sum_async_(tensor, name).wait()
        return tensor

    def all_to_all_async(self, rows: torch.Tensor, received: torch.Tensor, name: str) -> Handle:
        """Start an all-to-all; as bytes, which every backend has."""
        number, self._sums = self._sums, self._sums + 1
        with self._named(name):
            work = dist.all_to_all_single(
                received.view(torch.uint8), rows.view(torch.uint8), async_op=True
            )
        return _SumHandle(self, work, name, received[:, 0], number)

    def all_gather_async(self, row: torch.Tensor, rows: torch.Tensor, name: str) -> Handle:
        """Start an allgather, as bytes."""
        with self._named(name):
            parts = list(rows.view(torch.uint8))
            work = dist.all_gather(parts, row.view(torch.uint8), async_op=True)
        return _GatherHandle(self, work, name, rows)

    def refuse(self, sums: Mapping[str, torch.Tensor], all_to_all: Collection[str] = ()) -> None:
        """Note in the store that these sums are refused, and take part in them with NaNs.

        A rank that gets a NaN looks there. So sums cost nothing more where none is refused, and no connection
        is broken where one is.
        """
        keys = [_refused(self._sums + number) for number in range(len(sums))]
        with self._named("refusing a step"):
            for key in keys:
                self._store.set(key, "1")
            self._store.check(keys)  # `set` does not wait until it is done
        handles = []
        for name, tensor in sums.items():
            bad = torch.full_like(tensor, torch.nan)
            handles.append(
                self.all_to_all_async(bad, torch.empty_like(bad), name)
                if name in all_to_all
                else self.sum_async_(bad, name)
            )
        for handle in handles:
            with contextlib.suppress(SumRefused):
                handle.wait()

    def gather(self, row: torch.Tensor, name: str) -> torch.Tensor:
        """One allgather."""
        rows = row.new_empty((self.size, *row.shape))
        with self._named(name):
            self._finish(dist.all_gather(list(rows), row.contiguous(), async_op=True), row)
        return rows

    def broadcast_(self, tensors: Mapping[str, torch.Tensor], root: int = 0) -> None:
        """Broadcast all tensors at once; strided ones through a flat copy."""
        started = []
        for name, tensor in tensors.items():
            if tensor.numel() == 0:
                continue
            flat = tensor.detach().reshape(-1).contiguous()
            wire = flat.to(torch.uint8) if flat.dtype == torch.bool else flat
            with self._named(name):
                work = dist.broadcast(wire, src=root, async_op=True)
            started.append((name, tensor, wire, work))
        for name, tensor, wire, work in started:
            with self._named(name):
                self._finish(work, wire)
            if wire.data_ptr() != tensor.data_ptr():
                with torch.no_grad():
                    tensor.copy_(wire.reshape(tensor.shape))

    def gather_text(self, text: str) -> list[str]:
        """Two allgathers: lengths, then bytes, padded to the longest."""
        data = text.encode()
        lengths = self.gather(torch.tensor([len(data)]), "text.lengths").flatten().tolist()
        padded = bytearray(data.ljust(max(1, *lengths), b"\0"))
        rows = self.gather(torch.frombuffer(padded, dtype=torch.uint8), "text.bytes").numpy()
        return [row[:length].tobytes().decode() for row, length in zip(rows, lengths, strict=True)]

    def shutdown(self) -> None:
        """Leave the process group on this rank."""
        dist.destroy_process_group()

    def _finish(self, work: Any, tensor: torch.Tensor) -> None:
        """Wait until the result is there, without a spinning thread."""
        if tensor.is_cuda:  # its `wait` has only the GPU wait
            began = time.perf_counter()
            while not work.is_completed():
                time.sleep(max(5e-5, (time.perf_counter() - began) / 500))
        work.wait()

    def _is_nan(self, first: torch.Tensor) -> bool:
        """Whether numbers that have arrived have a NaN; on a GPU this does not wait for what computes there."""
        if not first.is_cuda:
            return bool(first.isnan().any())
        if self._aside is None:
            self._aside = torch.cuda.Stream(first.device)
        with torch.cuda.stream(self._aside):
            return bool(first.isnan().any())

    def _was_refused(self, number: int) -> bool:
        with self._named("asking about a sum"):
            found: bool = self._store.check([_refused(number)])
        return found

    @contextlib.contextmanager
    def _named(self, what: str) -> Iterator[None]:
        """torch's errors as CommError; `what` is the collective."""
        try:
            yield
        except RuntimeError as error:
            raise _fault(f"{what} on {socket.gethostname()}", error) from error


class _SumHandle:
    def __init__(
        self, comm: TorchDistributed, work: Any, name: str, first: torch.Tensor, number: int
    ) -> None:
        """`first`: the numbers of the result that are NaN if a rank has refused."""
        self._comm, self._work, self._name = comm, work, name
        self._first, self._number = first, number

    def wait(self) -> None:
        comm, first = self._comm, self._first
        with comm._named(self._name):
            comm._finish(self._work, first)
        if first.is_floating_point() and comm._is_nan(first) and comm._was_refused(self._number):
            raise SumRefused(f"{self._name} on {socket.gethostname()}: refused by another rank")


class _GatherHandle:
    def __init__(self, comm: TorchDistributed, work: Any, name: str, rows: torch.Tensor) -> None:
        self._comm, self._work, self._name, self._rows = comm, work, name, rows

    def wait(self) -> None:
        with self._comm._named(self._name):
            self._comm._finish(self._work, self._rows)


def torch_engine() -> str:
    """What this torch can join ranks with. Raises CommError if it lacks what its devices need."""
    if not dist.is_available() or not dist.is_gloo_available():
        raise CommError(
            "this torch was built without gloo: install a build from PyPI or PyTorch's index"
        )
    nccl = dist.is_nccl_available()
    if torch.cuda.is_available() and not nccl:
        raise CommError(
            "this torch has CUDA, but was built without NCCL: install a build from PyPI"
        )
    return f"torch.distributed {torch.__version__} with gloo{' and NCCL' if nccl else ''}"


def _refused(number: int) -> str:
    return f"hvdtrain/refused/{number}"


def _fault(where: str, error: BaseException) -> CommError:
    """A CommError for torch's; its text may end with a stack, and begin with a place in torch's source."""
    text = str(error).partition("\n")[0].strip() or type(error).__name__
    if PEER_GONE.search(text):
        return rank_gone(where, text.partition("] ")[2] if text.startswith("[") else text)
    return CommError(f"{where}: {text}")


def _store(task: TorchTask, address: str) -> Any:
    """The store in which ranks look each other up. Raises CommError."""
    wait = {"timeout": timedelta(seconds=JOIN_S), "wait_for_workers": False}
    place = f"{task.address}:{task.port}" if task.port else ""
    if place:
        _require_address(task.address)
    try:
        if place:
            serves = task.serves
            store = dist.TCPStore(task.address, task.port, is_master=serves, **wait)
        else:
            store, place = _store_by_mpi(task, address, wait)
    except BrokenBuild as error:
        raise CommError(
            f"comm.engine: torch: {error}, and without it ranks need to be told where they meet: set "
            "MASTER_ADDR to the host of rank 0 and MASTER_PORT to a free port for all ranks (mpirun -x "
            "MASTER_ADDR -x MASTER_PORT), or start them with torchrun"
        ) from None
    except RuntimeError as error:
        text = str(error).partition("\n")[0].strip()
        raise CommError(
            f"{socket.gethostname()}: the store of the ranks at {place}: {text}: MASTER_ADDR must be the "
            "host of rank 0, and MASTER_PORT a port that nothing else there uses"
        ) from None
    # torchrun's own store keeps what an earlier attempt has written.
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return dist.PrefixStore(f"hvdtrain/{attempt}", store)


def _require_address(name: str) -> None:
    """Raise CommError if nothing here knows the host: torch would go on asking for JOIN_S."""
    try:
        socket.getaddrinfo(name, None)
    except OSError:
        raise CommError(
            f"{socket.gethostname()}: the name {name} of the host of rank 0 is unknown: set MASTER_ADDR to its "
            "address on all ranks, and MASTER_PORT to a free port"
        ) from None


def _store_by_mpi(task: TorchTask, address: str, wait: Mapping[str, Any]) -> tuple[Any, str]:
    """A store of rank 0, and where it is."""
    if task.rank == 0:
        store = dist.TCPStore(address, 0, is_master=True, **wait)
        return store, mpi_broadcast(f"{address}:{store.port}")
    place = mpi_broadcast("")
    host, _, port = place.rpartition(":")
    return dist.TCPStore(host, int(port), is_master=False, **wait), place
