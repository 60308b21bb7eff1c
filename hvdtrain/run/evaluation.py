"""Evaluation of a finished or interrupted run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hvdtrain.comm.agreement import require_equal, together
from hvdtrain.comm.ranks import Comm
from hvdtrain.config.load import load_config
from hvdtrain.engine.build import checkpoint_labels, set_up
from hvdtrain.engine.checkpoint import list_checkpoints, load_checkpoint, verify
from hvdtrain.engine.evaluate import evaluate
from hvdtrain.errors import CheckpointError, DataError
from hvdtrain.paths import RunPaths, run_root
from hvdtrain.run.guard.numbers import check_evaluation
from hvdtrain.telemetry.reports import Eval


def evaluate_run(path: Path, overrides: list[str], comm: Comm) -> dict[str, Any]:
    """Evaluate `path`: a checkpoint, or a run directory, whose newest checkpoint is taken.

    Returns loss, top1 and top5 (0–1) over all validation images, their number `images`, and the
    path of the `checkpoint`. Every rank reads the checkpoint. Raises CheckpointError or DataError,
    the same on all ranks.
    """
    with together(comm):
        checkpoint, root = _find(path)
        cfg = load_config(RunPaths(root).config, overrides)
        meta = verify(checkpoint)
    require_equal(comm, "the checkpoint", meta["sha256"]["model.safetensors"], CheckpointError)
    with set_up(cfg, comm) as parts:
        plan, loaders, state = parts.plan, parts.loaders, parts.state
        with together(comm):
            if not loaders.num_val:
                raise DataError("data.val: no validation images: name them with data.val=DIR")
            load_checkpoint(state, checkpoint, meta, checkpoint_labels(cfg, loaders))
        epoch = plan.epochs[min(max(state.progress.position.epoch - 1, 0), len(plan.epochs) - 1)]
        result = evaluate(state, loaders.val(epoch), loaders.num_val)
        check_evaluation(Eval(epoch.index + 1.0, state.progress.step, loaders.num_val, **result))
        return {**result, "images": loaders.num_val, "checkpoint": str(checkpoint)}


def _find(path: Path) -> tuple[Path, Path]:
    """The checkpoint to evaluate, and its run directory."""
    root = run_root(path)
    if root != path:
        return path, root
    newest = list_checkpoints(RunPaths(path).checkpoints)
    if not newest:
        raise CheckpointError(f"{path}: neither a run directory with checkpoints nor a checkpoint")
    return newest[0], path
