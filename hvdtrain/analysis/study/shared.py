"""How ranks share the work of a study: whole points, or the images of one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

from hvdtrain import activity
from hvdtrain.comm.agreement import together
from hvdtrain.comm.ranks import Comm

T = TypeVar("T")
Ask = Callable[[torch.Tensor], torch.Tensor]
"""A question, float64 [n], to all ranks → the sum of their answers, float64."""

ROUNDS = 20
"""Times that ranks meet while they share points: a slow rank lets the others wait, but not for so long
that they take it for stalled."""


def shared_points(
    comm: Comm, count: int, width: int, evaluate: Callable[[int], Sequence[float]]
) -> torch.Tensor:
    """`evaluate(i)`, `width` numbers each, for i = 0 … `count` - 1: float64 [count, width] on every rank.

    A rank evaluates every `comm.size`-th point by itself. A point's numbers do not depend on who
    evaluates it, so they do not depend on the number of ranks.
    """
    values = torch.zeros(count, width, dtype=torch.float64)
    each = comm.size * -(-count // (comm.size * ROUNDS))
    for first in range(0, count, each):
        part = values[first : first + each]
        for place in range(comm.rank, len(part), comm.size):
            part[place] = torch.tensor(evaluate(first + place), dtype=torch.float64)
            activity.step(first + min(place + comm.size - comm.rank, len(part)))
        comm.sum_(part, "study.points")
    return values


def led(
    comm: Comm,
    size: int,
    device: torch.device,
    answer: Callable[[torch.Tensor], torch.Tensor],
    work: Callable[[Ask], T],
) -> T | None:
    """`work(ask)` on rank 0, whose questions, float64 [size], all ranks answer; None on the others.

    `answer` gives this rank's part of a sum, float64 of the same length on all ranks. Only rank 0
    takes decisions: processors of different kinds round differently, and an iteration that every rank ran for
    itself could end earlier on some. An error of `work` is raised on all ranks.
    """
    message = torch.zeros(
        size + 1, dtype=torch.float64, device=device
    )  # the last: whether to go on

    def send(question: torch.Tensor | None) -> None:
        message[-1] = float(question is not None)
        if question is not None:
            message[:-1] = question
        comm.broadcast_({"study.question": message})

    def answered() -> torch.Tensor:
        return comm.sum_(answer(message[:-1]), "study.answer")

    def ask(question: torch.Tensor) -> torch.Tensor:
        send(question)
        return answered()

    result: T | None = None
    with together(comm):  # when rank 0 stops asking, however, all leave this block
        if comm.rank == 0:
            try:
                result = work(ask)
            finally:
                send(None)
        else:
            send(None)
            while message[-1]:
                answered()
                send(None)
    return result
