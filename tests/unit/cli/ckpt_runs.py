"""Small checkpoints, and what tests of `hvdtrain ckpt` do with them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from hvdtrain.checkpoint_keep import Keep
from hvdtrain.engine.checkpoint import contents, metadata, write_checkpoint
from hvdtrain.engine.progress import Progress
from hvdtrain.engine.step import State
from hvdtrain.plan.epochs import Position

LABELS = {"model": "tiny", "classes": 7}

Typed = Callable[..., tuple[int, str, str]]

OLDEST, MIDDLE, NEWEST = "e0009-s0000000000", "e0002-s0000000020", "e0003-s0000000040"
"""In the order in which they were written: the furthest first."""


def save(root: Path, state: State, epoch: int, sample: int = 0, **about: Any) -> Path:
    at = Position(epoch, sample)
    state.progress = Progress(at, state.progress.step, 10 * epoch, 1.25 * epoch)
    meta = metadata(state, LABELS, about)
    return write_checkpoint(contents(state), meta, root / "checkpoints", Keep(99)).path


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)


def names(run: Path) -> set[str]:
    return {path.name for path in (run / "checkpoints").iterdir()}


def one_line(code: int, done: tuple[int, str, str], *parts: str) -> None:
    assert done[0] == code, done
    [line] = done[2].splitlines()
    assert line.startswith("hvdtrain: error: ")
    for part in parts:
        assert part in line
