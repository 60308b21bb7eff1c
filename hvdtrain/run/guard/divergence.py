"""Ranks that have drifted apart: weights and optimizer state are compared over ranks now and then.

All ranks make the same update from the same gradient, so a difference of a single bit is a fault of
a memory, a processor or a program. Batch-norm statistics are each rank's own and do not count.
"""

from __future__ import annotations

import time
from collections import Counter

import torch

from hvdtrain.config.schema import Train
from hvdtrain.engine.checkpoint import list_checkpoints
from hvdtrain.engine.checkpoint_errors import factors
from hvdtrain.engine.digest import digest
from hvdtrain.engine.step import State
from hvdtrain.errors import DivergenceError
from hvdtrain.optim import optimizer_tensors
from hvdtrain.paths import RunPaths
from hvdtrain.run.guard.numbers import check_state
from hvdtrain.telemetry.reports import Note
from hvdtrain.telemetry.sinks import Sinks

PACE_S = 60.0
"""Time from one comparison to the next, unless `train.compare_every` says how many updates."""
MOST_SHARE = 0.001
"""Of the time: where a comparison takes longer than this share of `PACE_S`, they are made less often."""
PARTS = ("weights", "optimizer state", "averaged weights")
NAMED = 4
"""Most ranks that a line names."""


class Comparison:
    """When the ranks were compared, and what follows; the same on all ranks."""

    def __init__(
        self, train: Train, state: State, hosts: list[str], sinks: Sinks, paths: RunPaths
    ) -> None:
        self._train, self._state = train, state
        self._hosts, self._sinks, self._paths = hosts, sinks, paths
        self._every = train.compare_every or 0
        self._pace_s = PACE_S
        self._compared_at: int | None = None
        """Number of the last update before a comparison; ranks begin with the state of rank 0."""

    def pace(self, step_seconds: float) -> None:
        """The time of a step, equal on all ranks: from it follow the updates of `PACE_S`."""
        if self._train.compare_every is None:
            self._every = max(1, round(self._pace_s / max(step_seconds, 1e-9)))

    def after_step(self) -> None:
        """Compare if it is time, see `compare`; every rank calls it after each update."""
        if self._compared_at is None:
            self._compared_at = self._state.progress.step - 1
        if self._every and self._state.progress.step - self._compared_at >= self._every:
            self.compare()

    def compare(self) -> None:
        """Compare, unless nothing was updated since; every rank must call it.

        If ranks differ, do what `train.on_divergence` says. Raises DivergenceError on all ranks, or
        TrainingError if the weights are of no use on any of them.
        """
        step = self._state.progress.step
        if self._state.comm.size == 1 or self._compared_at in (None, step):
            return
        rows, seconds = gather_digests(self._state)
        self._pace_s = max(PACE_S, seconds / MOST_SHARE)
        if len(set(rows)) > 1:
            self._react(rows)
        self._compared_at = step

    def _react(self, rows: list[tuple[int, ...]]) -> None:
        assert self._compared_at is not None
        if _all_broken(self._state):
            if self._train.rollbacks:
                return  # the next report or checkpoint goes back
            check_state(self._state, self._paths)
        text = describe(rows, self._hosts)
        since = f"between updates {self._compared_at + 1} and {self._state.progress.step}"
        root = majority(rows)
        mode = self._train.on_divergence
        if mode == "majority" and root is not None:
            self._state.comm.broadcast_(shared_tensors(self._state), root=root)
            if len(set(gather_digests(self._state)[0])) > 1:
                raise DivergenceError(f"{text} {since}, even after they took those of rank {root}")
            self._sinks.write(
                Note(f"warning: {text} {since}; it took those of rank {root}: {SUSPECTS}")
            )
        elif mode == "warn":
            self._sinks.write(Note(f"warning: {text} {since}: {SUSPECTS}"))
        else:
            raise DivergenceError(f"{text} {since}: {SUSPECTS}{_go_on(self._paths)}")


SUSPECTS = (
    "look for faults of memory, GPU or processor there (unequal hardware: train.on_divergence)"
)


def gather_digests(state: State) -> tuple[list[tuple[int, ...]], float]:
    """For every rank the digests of its `PARTS`, and the seconds that the slowest rank took for them.

    One small collective, which waits for the device.
    """
    named = dict(state.model.named_parameters())
    optimizer = optimizer_tensors(state.model, state.optimizer) | _loss_scale(state)
    optimizer |= factors(state)
    averaged = state.ema.tensors if state.ema is not None else {}
    parts: list[list[torch.Tensor]] = [
        [p.detach() for p in named.values()],
        [*optimizer.values()],
        [tensor for name, tensor in averaged.items() if name in named],
    ]
    device = state.settings.device
    if device.type == "cuda":  # what was queued before does not count
        torch.cuda.synchronize(device)
    began = time.perf_counter()
    row = torch.stack([digest(tensors).to(device) for tensors in parts]).cpu()
    took_us = torch.tensor([round(1e6 * (time.perf_counter() - began))])
    rows = state.comm.gather(torch.cat([row, took_us]), "digests").tolist()
    return [tuple(digests) for *digests, _ in rows], max(us for *_, us in rows) / 1e6


def shared_tensors(state: State) -> dict[str, torch.Tensor]:
    """All tensors that a rank needs to go on like another, by name."""
    tensors = {f"model.{name}": value for name, value in state.model.state_dict().items()}
    optimizer = optimizer_tensors(state.model, state.optimizer) | _loss_scale(state)
    tensors |= {f"optimizer.{name}": value for name, value in optimizer.items()}
    tensors |= {f"compression.{name}": value for name, value in factors(state).items()}
    if state.ema is not None:
        tensors |= {f"ema.{name}": value for name, value in state.ema.tensors.items()}
    return tensors


def _loss_scale(state: State) -> dict[str, torch.Tensor]:
    """The tensors of the loss scale; there are none before the first step."""
    found = {name: getattr(state.scaler, name, None) for name in ("_scale", "_growth_tracker")}
    return {name: tensor for name, tensor in found.items() if tensor is not None}


def _all_broken(state: State) -> bool:
    """Whether no rank's weights are finite: such numbers may differ in bits that mean nothing."""
    fine = all(bool(p.isfinite().all()) for p in state.model.parameters())
    return not state.comm.gather(torch.tensor([float(fine)]), "finite").any()


def majority(rows: list[tuple[int, ...]]) -> int | None:
    """The first rank whose state more than half of all ranks have; None if there is no such state."""
    row, count = Counter(rows).most_common(1)[0]
    return rows.index(row) if 2 * count > len(rows) else None


def describe(rows: list[tuple[int, ...]], hosts: list[str]) -> str:
    """Which ranks differ from which, and in what: the middle of a sentence."""
    part = next(name for name, *found in zip(PARTS, *rows, strict=True) if len(set(found)) > 1)
    root = majority(rows)
    if root is None:
        ranks = _named([rows.index(row) for row in dict.fromkeys(rows)], hosts)
        few = "two ranks" if len(rows) == 2 else "no majority"
        return f"{ranks} got different {part}, and with {few} none can be called the wrong one,"
    odd = [rank for rank, row in enumerate(rows) if row != rows[root]]
    return f"{_named(odd, hosts)} got other {part} than the other {len(rows) - len(odd)} ranks"


def _named(ranks: list[int], hosts: list[str]) -> str:
    first = ", ".join(f"rank {rank} on {hosts[rank]}" for rank in ranks[:NAMED])
    more = len(ranks) - NAMED
    return f"{first} and {more} more" if more > 0 else first


def _go_on(paths: RunPaths) -> str:
    """What to do: from the last checkpoint, before which all ranks were equal."""
    newest = next(iter(list_checkpoints(paths.checkpoints)), None)
    if newest is None:
        return ", then start again"
    return f", then go on with --resume {paths.root}, from {newest.name}, when all were equal"
