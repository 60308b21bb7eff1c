"""The errors of PowerSGD in checkpoints: every rank's own, for a run that goes on with the same bits.

`ERRORS_FILE` has for each compressed parameter NAME `NAME/error` [ranks, …the parameter's shape], in the
units of `Reducer.loss_scale`: their sum over ranks is what the mean gradient lacks. And `NAME/factor`
[r, …shape of one row], where the next step starts. On as many ranks as wrote it, each gets its own error. On
other numbers each gets an equal share of their sum, on which alone the gradients of the next steps depend.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import safetensors
import torch

from hvdtrain import activity
from hvdtrain.checkpoint_files import ERRORS_FILE
from hvdtrain.comm.agreement import together
from hvdtrain.comm.ranks import Comm
from hvdtrain.config.overrides import printable
from hvdtrain.engine.compression.powersgd import Matrix
from hvdtrain.engine.step import State
from hvdtrain.errors import CheckpointError

CHUNK = 2**26
"""Numbers of all ranks together that are gathered at once: every rank gets them."""
ERROR, FACTOR = "error", "factor"


def kept_tensors(state: State) -> dict[str, torch.Tensor]:
    """This rank's errors and factors, by name, sharing memory with `state`; empty without PowerSGD."""
    found = {}
    for name, matrix in _named(state).items():
        found[f"{name}/{ERROR}"], found[f"{name}/{FACTOR}"] = matrix.error, matrix.factor
    return found


def factors(state: State) -> dict[str, torch.Tensor]:
    """Those of `kept_tensors` that are equal on all ranks."""
    return {f"{name}/{FACTOR}": matrix.factor for name, matrix in _named(state).items()}


def gather_errors(state: State) -> dict[str, torch.Tensor]:
    """The content of `ERRORS_FILE`, on the CPU of rank 0; empty on the others, and without PowerSGD.

    Every rank must call it. Over the network go the errors of all ranks.
    """
    content: dict[str, torch.Tensor] = {}
    for name, matrix in _named(state).items():
        rows = _gathered(matrix, state.comm)
        if rows is not None:
            content[f"{name}/{ERROR}"] = rows
            content[f"{name}/{FACTOR}"] = matrix.factor.cpu().clone()
    return content


def _gathered(matrix: Matrix, comm: Comm) -> torch.Tensor | None:
    """The errors of all ranks [ranks, …shape] on rank 0."""
    mine = matrix.error_rows.flatten().cpu()
    rows = mine.new_empty(comm.size, len(mine)) if comm.rank == 0 else None
    length = max(1, CHUNK // comm.size)
    for begin in range(0, len(mine), length):
        activity.beat()
        found = comm.gather(mine[begin : begin + length], "errors")
        if rows is not None:
            rows[:, begin : begin + length] = found
    if rows is None:
        return None
    error = matrix.error
    return rows.as_strided((comm.size, *error.shape), (len(mine), *error.stride()))


class SavedErrors:
    """The errors in a checkpoint, which only rank 0 needs to see; read one parameter after the other."""

    def __init__(self, state: State, path: Path) -> None:
        """`path`: of a verified checkpoint. Raises CheckpointError if they are of another model."""
        self.file = path / ERRORS_FILE
        with self._opened() as opened:
            shapes = {key: opened.get_slice(key).get_shape() for key in list(opened.keys())}
        self.names = sorted({key.rpartition("/")[0] for key in shapes})
        self.ranks: int = next((s[0] for k, s in shapes.items() if k.endswith(f"/{ERROR}")), 0)
        parameters = {name: [*p.shape] for name, p in state.model.named_parameters()}
        for name in self.names:
            shape = parameters.get(name, [])
            error, factor = (shapes.get(f"{name}/{kind}", []) for kind in (ERROR, FACTOR))
            if not shape or error != [self.ranks, *shape] or factor[1:] != shape[1:]:
                raise CheckpointError(
                    f"{self.file}: made by another model: {printable(name)} does not fit"
                )

    def read(self, name: str, kind: str) -> torch.Tensor:
        """The errors of all ranks, or the factor, of parameter `name`."""
        with self._opened() as opened:
            found: torch.Tensor = opened.get_tensor(f"{name}/{kind}")
        return found

    @contextlib.contextmanager
    def _opened(self) -> Iterator[Any]:
        try:
            with safetensors.safe_open(self.file, "pt") as opened:
                yield opened
        except (safetensors.SafetensorError, OSError, ValueError) as error:
            raise CheckpointError(f"{self.file}: not written by hvdtrain: {error}") from None


@torch.no_grad()
def load_factors(state: State, path: Path, meta: dict[str, Any]) -> SavedErrors | None:
    """Load the factors of a checkpoint that was loaded, on rank 0, and find its errors; None if there are none.

    All errors of `state` are then zero. Where the rank of the approximation is another, what is missing is drawn
    from the seed. Raises CheckpointError if they are of another model.
    """
    memory = state.reducer.memory
    if memory is None:
        return None
    memory.reset()
    if ERRORS_FILE not in meta["sha256"]:
        return None
    saved = SavedErrors(state, path)
    for name, matrix in _named(state).items():
        if name in saved.names:
            factor = saved.read(name, FACTOR)[: len(matrix.factor)]
            matrix.factor[: len(factor)] = factor
    return saved


@torch.no_grad()
def share_errors(state: State, saved: SavedErrors | None) -> None:
    """Give each rank its error of the checkpoint that rank 0 has loaded; `saved`: from `load_factors` there.

    Every rank must call it; the factors are those of `shared_tensors`. Raises CheckpointError on all ranks.
    """
    comm, matrices = state.comm, _named(state)
    if not matrices:
        return
    mine = [saved.ranks, saved.names] if saved is not None else [0, []]
    ranks, names = json.loads(comm.gather_text(json.dumps(mine))[0])
    for name, matrix in matrices.items():
        matrix.error.zero_()
        if name not in names:
            continue
        with together(comm):
            rows = saved.read(name, ERROR) if saved is not None else None
        if ranks == comm.size:
            for rank in range(ranks):
                error = _from_rank_0(None if rows is None else rows[rank], matrix, comm)
                if rank == comm.rank:
                    matrix.error.copy_(error)
        else:
            sums = None if rows is None else rows.double().sum(0) / comm.size
            matrix.error.copy_(_from_rank_0(sums, matrix, comm))


def _from_rank_0(found: torch.Tensor | None, matrix: Matrix, comm: Comm) -> torch.Tensor:
    """A tensor of rank 0 in the shape of `matrix.error`, on the CPU of all ranks."""
    activity.beat()
    error = torch.empty(matrix.error.shape, dtype=matrix.error.dtype)
    if found is not None:
        error.copy_(found)
    comm.broadcast_({"error": error})
    return error


def dropped_errors(state: State, path: Path, meta: dict[str, Any]) -> str:
    """What of a checkpoint's errors a run does not go on with, in a line; empty if nothing."""
    if ERRORS_FILE not in meta["sha256"]:
        return ""
    lost = [name for name in SavedErrors(state, path).names if name not in _named(state)]
    if not lost:
        return ""
    tensors = "1 tensor" if len(lost) == 1 else f"{len(lost)} tensors"
    return f"{path / ERRORS_FILE}: errors of PowerSGD for {tensors} that are not compressed now are dropped"


def _named(state: State) -> dict[str, Matrix]:
    memory = state.reducer.memory
    return {} if memory is None else memory.named(state.model)
