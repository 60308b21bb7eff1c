"""The ranks of a torch.distributed job that another program has started.

`hvdtrain.watch` exchanges a few numbers among them, in a process group of its own, so that they never
stand between the collectives of the job.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Collection, Iterator, Mapping

import torch
import torch.distributed as dist

from hvdtrain.comm.ranks import Comm, Handle, Solo
from hvdtrain.errors import CommError, ConfigError
from hvdtrain.launch.variables import launcher_sizes


def in_process_group() -> bool:
    """Whether this process has joined a job of torch.distributed."""
    return dist.is_available() and dist.is_initialized()


def watched_ranks() -> Comm:
    """The ranks of the job that this process is in; every rank must call it. One rank without a job.

    Raises ConfigError if a launcher has started several ranks that have not joined each other yet.
    """
    if in_process_group():
        return WatchedGroup()
    ranks = max(launcher_sizes(os.environ).values(), default=1)
    if ranks > 1:
        raise ConfigError(
            f"watch.start: a launcher has started {ranks} ranks, but torch.distributed is not "
            "initialised: call init_process_group, or make the Trainer or Accelerator, first"
        )
    return Solo()


class WatchedGroup:
    """A gloo group of all ranks of the job, on the CPU. Raises CommError where a rank is gone.

    Only what a report needs is exchanged: gradients stay with the job.
    """

    engine = "torch"
    why = "as the job has it"

    def __init__(self) -> None:
        self.rank: int = dist.get_rank()
        self.size: int = dist.get_world_size()
        with _named("start of the watch"):
            self._group = dist.new_group(backend="gloo")
        hosts = self.gather_text(socket.gethostname())
        self.local_rank: int = hosts[: self.rank].count(hosts[self.rank])
        self.local_size: int = hosts.count(hosts[self.rank])

    def sum_async_(self, tensor: torch.Tensor, name: str) -> Handle:
        """Start an in-place sum of a tensor on the CPU."""
        with _named(name):
            work = dist.all_reduce(tensor, group=self._group, async_op=True)
        assert work is not None
        return _Waiting(work, name)

    def sum_(self, tensor: torch.Tensor, name: str) -> torch.Tensor:
        """Sum in place and wait."""
        self.sum_async_(tensor, name).wait()
        return tensor

    def all_to_all_async(self, rows: torch.Tensor, received: torch.Tensor, name: str) -> Handle:
        """No gradients are ours to send."""
        raise CommError(f"{name}: a watched job sums its gradients itself")

    def all_gather_async(self, row: torch.Tensor, rows: torch.Tensor, name: str) -> Handle:
        """The same."""
        raise CommError(f"{name}: a watched job sums its gradients itself")

    def refuse(self, sums: Mapping[str, torch.Tensor], all_to_all: Collection[str] = ()) -> None:
        """No sum of a watched job is ours to refuse."""
        raise CommError(f"{', '.join(sums)}: a watched job sums its gradients itself")

    def gather(self, row: torch.Tensor, name: str) -> torch.Tensor:
        """One allgather."""
        rows = [torch.empty_like(row) for _ in range(self.size)]
        with _named(name):
            dist.all_gather(rows, row, group=self._group)
        return torch.stack(rows)

    def broadcast_(self, tensors: Mapping[str, torch.Tensor], root: int = 0) -> None:
        """One broadcast for each tensor, which is contiguous and on the CPU."""
        for name, tensor in tensors.items():
            with _named(name):
                dist.broadcast(tensor, root, group=self._group)

    def gather_text(self, text: str) -> list[str]:
        """Two allgathers: lengths, then bytes."""
        data = text.encode()
        lengths = self.gather(torch.tensor([len(data)]), "text.lengths").flatten().tolist()
        padded = torch.zeros(max(1, *lengths), dtype=torch.uint8)
        padded[: len(data)] = torch.tensor(list(data), dtype=torch.uint8)
        rows = self.gather(padded, "text.bytes")
        return [
            bytes(row[:length].tolist()).decode() for row, length in zip(rows, lengths, strict=True)
        ]

    def shutdown(self) -> None:
        """Leave our group; the job keeps its own."""
        with contextlib.suppress(RuntimeError, ValueError):
            dist.destroy_process_group(self._group)


class _Waiting:
    def __init__(self, work: dist.Work, name: str) -> None:
        self._work, self._name = work, name

    def wait(self) -> None:
        with _named(self._name):
            self._work.wait()


@contextlib.contextmanager
def _named(what: str) -> Iterator[None]:
    """torch's errors as CommError; `what` is the collective."""
    if not in_process_group():
        raise CommError(
            f"{what}: the process group of the job is gone: close the watch before "
            "destroy_process_group"
        )
    try:
        yield
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise CommError(
            f"{what} on {socket.gethostname()}: another rank is gone or unreachable ({reason}); the "
            "launcher names the first that failed"
        ) from error
