"""The ranks of a job and every collective the project uses; `Solo` is a job of one process.

Collectives must be called by every rank in the same order.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Protocol

import torch

from hvdtrain.errors import CommError


class Handle(Protocol):
    """A collective in flight."""

    def wait(self) -> None:
        """Block until the result is in the tensor that was passed in."""


class Comm(Protocol):
    """The collectives that the trainer uses; ranks are 0 … size-1."""

    rank: int
    size: int
    local_rank: int
    local_size: int
    engine: str
    """What joins the ranks: horovod or torch; empty for one process."""
    why: str
    """Why it is this engine."""

    def sum_async_(self, tensor: torch.Tensor, name: str) -> Handle:
        """Start to sum `tensor` over all ranks, in place; calls of equal `name` belong together."""

    def sum_(self, tensor: torch.Tensor, name: str) -> torch.Tensor:
        """Sum `tensor` over all ranks, in place, and return it."""

    def all_to_all_async(self, rows: torch.Tensor, received: torch.Tensor, name: str) -> Handle:
        """Start to give row r of `rows` [size, n] to rank r; row r of `received` [size, n] is from rank r. An
        all-to-all of contiguous tensors, floats of two bytes."""

    def all_gather_async(self, row: torch.Tensor, rows: torch.Tensor, name: str) -> Handle:
        """Start to put the `row` [n] of every rank into `rows` [size, n] on all ranks; as `all_to_all_async`."""

    def refuse(self, sums: Mapping[str, torch.Tensor], all_to_all: Collection[str] = ()) -> None:
        """In place of `sum_async_` of these tensors, in this order: the sums raise SumRefused on all ranks.

        `all_to_all`: names of those for which the others call `all_to_all_async`. Returns once all have raised. Other
        collectives may follow.
        """

    def gather(self, row: torch.Tensor, name: str) -> torch.Tensor:
        """The `row` [n] of every rank, of the same length on all: [size, n] on every rank."""

    def broadcast_(self, tensors: Mapping[str, torch.Tensor], root: int = 0) -> None:
        """Give every rank the values of rank `root`, in place."""

    def gather_text(self, text: str) -> list[str]:
        """The text of every rank, in rank order, on every rank."""

    def shutdown(self) -> None:
        """Leave the job; no collective may follow."""


class Solo:
    """A job of one rank, without an engine."""

    engine = why = ""
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

    def all_to_all_async(self, rows: torch.Tensor, received: torch.Tensor, name: str) -> Handle:
        """The one row."""
        received.copy_(rows)
        return _Done()

    def all_gather_async(self, row: torch.Tensor, rows: torch.Tensor, name: str) -> Handle:
        """The one row."""
        rows.copy_(row[None])
        return _Done()

    def refuse(self, sums: Mapping[str, torch.Tensor], all_to_all: Collection[str] = ()) -> None:
        """Nobody waits."""

    def gather(self, row: torch.Tensor, name: str) -> torch.Tensor:
        """The one row."""
        return row[None]

    def broadcast_(self, tensors: Mapping[str, torch.Tensor], root: int = 0) -> None:
        """Rank 0 is the only one."""

    def gather_text(self, text: str) -> list[str]:
        """The one text."""
        return [text]

    def shutdown(self) -> None:
        """Nothing to leave."""


class _Done:
    def wait(self) -> None:
        return


def rank_gone(where: str, text: str) -> CommError:
    """The error of a collective whose peer has ended; `text` is what the engine says, in one line."""
    reason = text.split(". ", maxsplit=1)[0]
    return CommError(
        f"{where}: another rank is gone or unreachable ({reason}); "
        "the launcher names the first that failed; go on with --resume auto"
    )
