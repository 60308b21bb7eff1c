"""Evaluate a finished or interrupted run from its directory."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import torch

from hvdtrain.comm.agreement import require_equal, together
from hvdtrain.comm.ranks import Comm
from hvdtrain.comm.start import cores_for_rank
from hvdtrain.config.load import load_config
from hvdtrain.engine.build import (
    checkpoint_labels,
    choose_device,
    init_state,
    open_loaders,
    share_data,
)
from hvdtrain.engine.checkpoint import list_checkpoints, load_checkpoint, verify
from hvdtrain.engine.evaluate import evaluate
from hvdtrain.errors import CheckpointError, DataError
from hvdtrain.paths import RunPaths, run_root
from hvdtrain.plan.epochs import make_plan


def evaluate_run(path: Path, overrides: list[str], comm: Comm) -> dict[str, Any]:
    """loss, top1, top5 (0–1) and images of a run's newest checkpoint, or of one named itself.

    Every rank reads the checkpoint. Raises CheckpointError or DataError on every rank alike.
    """
    device = choose_device(comm)
    cores = cores_for_rank(comm)
    torch.set_num_threads(cores)
    with together(comm):
        checkpoint, root = _find(path)
        cfg = load_config(RunPaths(root).config, overrides)
        meta = verify(checkpoint)
        loaders = open_loaders(cfg, comm, device, cores)
    with contextlib.closing(loaders):
        share_data(comm, loaders)
        require_equal(comm, "the checkpoint", meta["sha256"]["model.safetensors"], CheckpointError)
        with together(comm):
            if not loaders.num_val:
                raise DataError("data.val: no validation images: name them with data.val=DIR")
            plan = make_plan(cfg, comm.size, loaders.num_train)
            state = init_state(cfg, comm, device, len(loaders.classes))
            load_checkpoint(state, checkpoint, meta, checkpoint_labels(cfg, loaders))
        epoch = plan.epochs[min(max(state.progress.position.epoch - 1, 0), len(plan.epochs) - 1)]
        result = evaluate(state, loaders.val(epoch), loaders.num_val)
    return {**result, "images": loaders.num_val, "checkpoint": str(checkpoint)}


def _find(path: Path) -> tuple[Path, Path]:
    """The checkpoint that `path` means, and its run directory."""
    root = run_root(path)
    if root != path:
        return path, root
    newest = list_checkpoints(RunPaths(path).checkpoints)
    if not newest:
        raise CheckpointError(f"{path}: neither a run directory with checkpoints nor a checkpoint")
    return newest[0], path
