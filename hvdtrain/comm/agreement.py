"""Agreement between ranks: on errors, on values, on whether to stop."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import torch

from hvdtrain import errors
from hvdtrain.comm.ranks import Comm
from hvdtrain.errors import HvdtrainError


def any_rank(comm: Comm, flag: bool) -> bool:
    """True on every rank if `flag` is true on at least one."""
    return bool(comm.sum_(torch.tensor([float(flag)]), "any_rank").item())


@contextlib.contextmanager
def together(comm: Comm) -> Iterator[None]:
    """A context that turns an HvdtrainError on any rank into the same error on every rank.

    For set-up only: the body must not call collectives. Equal messages are shown once.
    """
    fault: HvdtrainError | None = None
    try:
        yield
    except HvdtrainError as error:
        fault = error
    texts = comm.gather_text(f"{type(fault).__name__}\n{fault}" if fault else "")
    faults = {rank: text for rank, text in enumerate(texts) if text}
    if not faults:
        return
    kind, _, message = next(iter(faults.values())).partition("\n")
    if len(faults) < comm.size or len(set(faults.values())) > 1:
        message = "\n".join(
            f"rank {rank}: {line}" for rank, text in faults.items() for line in text.split("\n")[1:]
        )
    shared: HvdtrainError = getattr(errors, kind)(message)
    shared.everywhere = True
    raise shared from None


def require_equal(comm: Comm, what: str, value: str, kind: type[HvdtrainError]) -> None:
    """Raise `kind` on every rank unless `value` is the same on all."""
    values: Sequence[str] = comm.gather_text(value)
    other = next((r for r, v in enumerate(values) if v != values[0]), None)
    if other is not None:
        fault = kind(
            f"{what} differs between ranks: rank 0 has {values[0]}, rank {other} has {values[other]}"
        )
        fault.everywhere = True
        raise fault
