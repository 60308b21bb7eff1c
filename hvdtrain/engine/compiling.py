"""The network compiled by torch.compile, as a whole or in stages: `train.compile`.

Modules are compiled in place, so parameters keep their names and the optimizer, checkpoints and averages
do not know of it. Compiled code is used in training alone: evaluations compute as ever.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple

import torch
from torch import nn

from hvdtrain.engine.calibrate import restored
from hvdtrain.engine.mixing import Batch
from hvdtrain.engine.step import State, backward
from hvdtrain.errors import ConfigError

BACKEND = "inductor"
MOST = 10_000
"""Compilations of one part; torch would compute without compiling after 8."""


def compile_network(
    model: nn.Module, how: Literal["stages", "whole"], device: torch.device
) -> None:
    """Let `model` be compiled in training, when it sees its first batch.

    `stages`: in several parts, so that the backward pass is several as well, and the gradients of one are
    exchanged while the next is computed. Raises ConfigError if there is no compiler.
    """
    from torch._dynamo import config as tracing  # takes seconds
    from torch._inductor import config as kernels

    require_compiler(device)
    # Kernels are chosen without timing them: a resumed run gets the same ones, to the bit.
    kernels.deterministic = True
    tracing.accumulated_recompile_limit = MOST
    with tracing.patch(wrap_top_frame=True):  # else torch skips what is a plain nn.Sequential
        for part in [model] if how == "whole" else stages_of(model):
            part.compile(
                backend=BACKEND, dynamic=False, recompile_limit=MOST, isolate_recompiles=True
            )


def require_compiler(device: torch.device) -> None:
    """Compile a function of one line on `device`. Raises ConfigError if that does not work."""
    leave = "or leave train.compile out"
    if "isolate_recompiles" not in inspect.signature(torch.compile).parameters:
        raise ConfigError(
            f"train.compile: needs torch 2.13, found {torch.__version__}: update it, {leave}"
        )
    try:
        compiled = torch.compile(_one_more, backend=BACKEND, dynamic=False)
        _in_two_attempts(lambda: compiled(torch.ones(2, device=device)))
    except Exception as error:  # noqa: BLE001 - whatever a compiler or its absence raises
        needs = "a C++ compiler such as g++" if device.type == "cpu" else "Triton and a C compiler"
        raise ConfigError(
            f"train.compile: torch.compile does not work here ({first_line(error)}): it needs {needs} on every host: "
            f"install it, {leave}"
        ) from None


def _one_more(x: torch.Tensor) -> torch.Tensor:
    return x + 1


def stages_of(model: nn.Module) -> list[nn.Module]:
    """The parts of `model` that are compiled one by one, in its order.

    These are its children that have children themselves. A sequence with more than half of the parameters is
    split into its own, so that most gradients are not ready at the end only.
    """
    half = _size(model) / 2
    return [part for child in model.children() for part in _parts(child, half)]


def _parts(module: nn.Module, half: float) -> Iterator[nn.Module]:
    inner = [child for child in module.children() if _size(child)]
    if not inner:
        return
    nested = isinstance(module, nn.Sequential) and all(any(c.children()) for c in inner)
    if nested and _size(module) > half:
        for child in inner:
            yield from _parts(child, half)
    else:
        yield module


def _size(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


class Compiled(NamedTuple):
    """What was done for batches of a new shape."""

    graphs: int
    """Parts that were compiled; more than those of the network where it does what cannot be compiled."""
    seconds: float


def compile_for(state: State, batch: Batch, trained: int = 0) -> Compiled | None:
    """Compile for batches like this one; None if nothing was to do.

    `trained`: another number where other parts of the network are trained. The state is as it was before.
    Without this, the compiler would run in the first step, while other ranks wait for gradients. Raises
    ConfigError if the compiler fails.
    """
    key = (*batch.images.shape, trained)
    if state.compiled is None or key in state.compiled:
        return None
    from torch._dynamo.exc import TorchDynamoException
    from torch._dynamo.utils import counters

    before, began = counters["stats"]["unique_graphs"], time.perf_counter()
    try:
        _in_two_attempts(lambda: _pass_through(state, batch))
    except TorchDynamoException as error:
        raise ConfigError(
            f"train.compile: this network cannot be compiled ({first_line(error)}): set train.compile=none"
        ) from None
    graphs = counters["stats"]["unique_graphs"] - before
    if not graphs and not state.compiled:
        raise ConfigError(
            "train.compile: nothing of this network was compiled, as it does not call its parts: set "
            "train.compile=whole or none"
        )
    state.compiled.add(key)
    return Compiled(graphs, time.perf_counter() - began)


def _pass_through(state: State, batch: Batch) -> None:
    with restored(state):
        state.reducer.start_step(communicate=False)
        backward(state, batch)


def _in_two_attempts(compiles: Callable[[], object]) -> None:
    """Ctrl-C also ends the processes of a compiler, while a run goes on to its checkpoint: then it is called
    again."""
    try:
        compiles()
    except Exception:  # noqa: BLE001 - the second attempt raises what is no accident
        from torch._inductor.utils import clear_caches

        clear_caches()  # of failures
        compiles()


def first_line(error: Exception) -> str:
    """The first line of its text that says something, or its kind."""
    lines = [line.strip() for line in str(error).splitlines()]
    return next((line[:200] for line in lines if line and line[-1] != ":"), type(error).__name__)
