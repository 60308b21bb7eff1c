"""Numbers that are not finite, and loss scales that skip every update: they end a run.

Everything is judged by values that are equal on all ranks, so all ranks raise together.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from hvdtrain.checkpoint_files import ERRORS_FILE
from hvdtrain.comm.agreement import any_rank
from hvdtrain.engine.checkpoint import contents, list_checkpoints
from hvdtrain.engine.checkpoint_errors import kept_tensors
from hvdtrain.engine.step import State
from hvdtrain.errors import TrainingError
from hvdtrain.paths import RunPaths
from hvdtrain.telemetry.reports import Eval

IN_A_ROW = 50
"""Updates skipped one after the other that end a run: after as many halvings a dynamic loss scale is
far below 1, where fp16 has lost all small gradients."""
IN_AN_EPOCH = 10
"""A whole epoch of at least so many skipped updates ends a run with a fixed loss scale; a dynamic one
may still be on its way down."""
REMEDY = "lower lr.base, lengthen lr.warmup_epochs, or set optimizer.clip_norm or agc"


@dataclass
class Skips:
    """Follows the updates that the loss scale skips, from report to report."""

    steps: int = 0
    """Updates of the attempt up to the last report, skipped ones among them."""
    skipped: int = 0
    row: int = 0
    """Updates skipped in a row; those before the last report with a done update do not count."""

    def add(self, state: State, steps: int) -> None:
        """Count a report's `steps` updates. Raises TrainingError if too many are skipped in a row."""
        skipped = 0 if state.skipped is None else round(state.skipped.item())
        new, self.skipped = skipped - self.skipped, skipped
        self.steps += steps
        self.row = self.row + new if new == steps else 0
        if self.row >= IN_A_ROW:
            raise self._fault(state, f"the last {self.row} updates")

    def end_epoch(self, state: State, steps: int) -> None:
        """Raises TrainingError if a fixed loss scale has skipped all `steps` updates of an epoch."""
        fixed = state.settings.static_loss_scale is not None
        if fixed and self.row >= steps >= IN_AN_EPOCH:
            raise self._fault(state, f"all {steps} updates of the epoch")

    def end_run(self, state: State) -> None:
        """Raises TrainingError if this attempt has not made a single update."""
        if self.steps and self.row == self.steps:
            raise self._fault(state, f"all {self.steps} updates")

    @property
    def never_updated(self) -> bool:
        """Whether no update of this attempt was made."""
        return self.row == self.steps

    def _fault(self, state: State, which: str) -> TrainingError:
        scale, fixed = state.scaler.get_scale(), state.settings.static_loss_scale is not None
        what = f"train.loss_scale {scale:g} is" if fixed else f"down to {scale:g} the loss scale is"
        fix = "lower it, or set it to dynamic" if fixed else "set train.precision to bf16 or fp32"
        return TrainingError(
            f"{which} were skipped, because gradients overflow fp16: {what} too large: {fix}"
        )


def check_loss(loss: float | None, state: State, skips: Skips, where: str) -> None:
    """Raise TrainingError if the loss of an interval is not finite. `where`: position and rate."""
    if loss is None or math.isfinite(loss):
        return
    fp16 = state.settings.autocast == torch.float16
    if fp16 and skips.never_updated:
        raise TrainingError(
            f"the loss is {loss} at {where}, before the first update: numbers above 65504 overflow "
            "fp16 in the forward pass, which no loss scale helps: set train.precision to bf16 or "
            "fp32, or check model.weights"
        )
    raise TrainingError(f"the loss is {loss} at {where}: {REMEDY}")


def check_evaluation(evaluation: Eval, paths: RunPaths | None = None) -> None:
    """Raise TrainingError if the loss of an evaluation, in the run of `paths`, is not finite."""
    if not math.isfinite(evaluation.loss):
        what = f"the loss of the evaluation is {evaluation.loss} after epoch {evaluation.epoch:g}"
        raise TrainingError(
            f"{what}{_go_on(paths)}" if paths else f"{what}: the weights are of no use"
        )


def check_state(state: State, paths: RunPaths, *, known: bool = False) -> None:
    """Raise TrainingError on all ranks if a tensor of the checkpoint would not be finite on one of them;
    every rank must call. Waits for the device, unless this rank is `known` to be finite."""
    what = None if known else not_finite(state)
    if any_rank(state.comm, what is not None):
        raise TrainingError(
            f"{what or 'a tensor of another rank'} is not finite after update {state.progress.step}, so no checkpoint of it is "
            f"written{_go_on(paths)}"
        )


def not_finite(state: State) -> str | None:
    """The first tensor of a checkpoint that is not finite, and how many are not; waits for the device."""
    for file, tensors in {**contents(state), ERRORS_FILE: kept_tensors(state)}.items():
        floats = {n: t for n, t in tensors.items() if t.is_floating_point() and t.numel()}
        if not floats:
            continue
        if all_finite([tensor.detach().sum().double() for tensor in floats.values()]):
            continue
        # Or large numbers have overflowed in the sum. Unlike isfinite() on all values this needs no memory.
        ends = [torch.stack(torch.aminmax(tensor.detach())) for tensor in floats.values()]
        finite = torch.stack([pair.isfinite().all() for pair in ends]).tolist()
        bad = [name for name, fine in zip(floats, finite, strict=True) if not fine]
        if bad:
            return f"{bad[0]} ({len(bad)} of {len(finite)} tensors of {file})"
    return None


def all_finite(sums: list[torch.Tensor]) -> bool:
    """Whether sums of tensors, on one device, show that all values are finite.

    NaN and infinities go through a sum, which costs a tenth of a search for the extremes. Large numbers
    may overflow in it: False then says nothing.
    """
    return not sums or bool(torch.stack(sums).isfinite().all())


def finite(value: torch.Tensor | None) -> float | None:
    """The value as a number; None for NaN and infinities, which JSON does not have."""
    number = math.nan if value is None else value.item()
    return number if math.isfinite(number) else None


def _go_on(paths: RunPaths) -> str:
    """What to do: from the last checkpoint, if there is one."""
    newest = next(iter(list_checkpoints(paths.checkpoints)), None)
    if newest is None:
        return f": {REMEDY}"
    return (
        f"; the last checkpoint is {newest}: go on with --resume {paths.root} --accept-changes, and "
        f"{REMEDY}"
    )
