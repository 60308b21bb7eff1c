"""Which checkpoints of a run are kept, and why."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from hvdtrain.checkpoint_files import NAME, START, read_meta
from hvdtrain.errors import CheckpointError


@dataclass(frozen=True)
class Keep:
    """Which checkpoints stay when a new one is there; each number may be 0 but the first."""

    last: int
    """Written last."""
    ends: int = 0
    """Of those at the end of an epoch, written last: those in mid-epoch come by the minute, and would
    leave no history."""
    best: int = 0
    """Of the highest top-1 accuracy; of equal ones the later."""
    every: int = 0
    """At the end of every so many epochs, for good."""
    lowest_loss: bool = False
    """That of the lowest validation loss; of equal ones the first."""
    start: bool = False
    """That before the first update."""


def _result(path: Path, key: str) -> float | None:
    """Of the evaluation before the checkpoint was written, `top1` (0-1) or `loss`; None without one."""
    try:
        value = read_meta(path).get(key)
    except CheckpointError:
        return None
    return None if value is None else float(value)


def why_kept(
    found: list[Path], keep: Keep, result_of: Callable[[Path, str], float | None] = _result
) -> dict[Path, list[str]]:
    """The reasons to keep each of `found`, which are ordered as by `list_checkpoints`; those without a
    reason have no entry. `result_of`: in place of their metadata."""
    reasons: dict[Path, list[str]] = {}

    def add(paths: list[Path], reason: str) -> None:
        for path in paths:
            reasons.setdefault(path, []).append(reason)

    ends = {path: epoch for path in found if (epoch := _epoch_at_end(path)) is not None}
    add(found[: keep.last], "last")
    add([*ends][: keep.ends], "epoch end")
    if keep.best:
        by_top1 = [
            (value, path) for path in found if (value := result_of(path, "top1")) is not None
        ]
        for value, path in sorted(by_top1, key=lambda pair: -pair[0])[: keep.best]:
            add([path], f"best, top-1 {100 * value:.2f} %")
    if keep.lowest_loss:
        losses = [(loss, path) for path in found if (loss := result_of(path, "loss")) is not None]
        if lowest := min(reversed(losses), key=lambda pair: pair[0], default=None):
            add([lowest[1]], f"lowest validation loss {lowest[0]:.4f}")
    if keep.every:
        chosen = [path for path, epoch in ends.items() if epoch and epoch % keep.every == 0]
        add(chosen, "every epoch" if keep.every == 1 else f"every {keep.every:,} epochs")
    add([path for path in found if keep.start and START.fullmatch(path.name)], "start")
    return reasons


def _epoch_at_end(path: Path) -> int | None:
    """Epochs done of a checkpoint at the end of one; None in mid-epoch."""
    matched = NAME.fullmatch(path.name)
    return int(matched[1]) if matched and not int(matched[2]) else None
