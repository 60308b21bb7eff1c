"""Evaluation of a finished or interrupted run."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
import yaml

from hvdtrain import activity
from hvdtrain.comm.agreement import require_equal, together
from hvdtrain.comm.ranks import Comm
from hvdtrain.config.load import load_config, parse_config
from hvdtrain.config.schema import Config
from hvdtrain.engine.build import model_labels, set_up_evaluation
from hvdtrain.engine.checkpoint import list_checkpoints, load_checkpoint, verify
from hvdtrain.engine.evaluate import evaluate
from hvdtrain.engine.mixing import Batch
from hvdtrain.errors import CheckpointError, DataError
from hvdtrain.paths import RunPaths, run_root
from hvdtrain.plan.epochs import Epoch
from hvdtrain.run.guard.numbers import check_evaluation
from hvdtrain.telemetry.reports import Eval
from pipelines.loader import Loaders


class Watcher(Protocol):
    """Sees every image of an evaluation, and at the end the result, with the images still open."""

    def add(self, batch: Batch, logits: torch.Tensor) -> None:
        """As `engine.evaluate.Watch`."""

    def end(self, result: dict[str, Any], cfg: Config, epoch: Epoch, loaders: Loaders) -> None:
        """Called on every rank."""


def evaluate_run(
    path: Path, overrides: list[str], comm: Comm, watcher: Watcher | None = None
) -> dict[str, Any]:
    """Evaluate `path`: a checkpoint, or a run directory, whose newest checkpoint is taken.

    Training images are not needed: classes, preprocessing and precision are those of the
    checkpoint and of the run's config. Returns loss, top1 and top5 (0–1) over all validation
    images, their number `images`, the `views` of each, the path of the `checkpoint`, and `warnings`. Every rank reads
    the checkpoint. Raises CheckpointError or DataError, the same on all ranks.
    """
    with together(comm):
        checkpoint, root = find_checkpoint(path)
        meta = verify(checkpoint)
        cfg = config_of(root, meta, overrides)
    require_equal(comm, "the checkpoint", meta["sha256"]["model.safetensors"], CheckpointError)
    classes = meta.get("data", {}).get("classes", [])
    with set_up_evaluation(cfg, comm, classes) as parts:
        plan, loaders, state = parts.plan, parts.loaders, parts.state
        with together(comm):
            require_held_out(cfg, meta, loaders.fingerprints["val"])
            load_checkpoint(state, checkpoint, meta, model_labels(cfg, loaders))
        epoch = plan.epochs[min(max(state.progress.position.epoch - 1, 0), len(plan.epochs) - 1)]
        activity.enter("evaluating", loaders.num_val, "images")
        watch = None if watcher is None else watcher.add
        result = evaluate(state, loaders.val(epoch), loaders.num_val, watch)
        at, views = epoch.index + 1.0, cfg.train.val_views
        check_evaluation(Eval(at, state.progress.step, loaders.num_val, **result, views=views))
        warnings = [*loaders.warnings, *([] if classes else [_NO_NAMES.format(checkpoint)])]
        found = {
            **result,
            "images": loaders.num_val,
            "views": views,
            "checkpoint": str(checkpoint),
            "warnings": warnings,
        }
        if watcher is not None:
            watcher.end(found, cfg, epoch, loaders)
        return found


_NO_NAMES = (
    "{}: written by an older version, without the names of its classes: their order is taken to be "
    "that of data.val"
)


def find_checkpoint(path: Path) -> tuple[Path, Path]:
    """The checkpoint `path` itself, or the newest of the run `path`, and its run directory.

    Raises CheckpointError if there is none.
    """
    root = run_root(path)
    if root != path:
        return path, root
    newest = list_checkpoints(RunPaths(path).checkpoints)
    if not newest:
        raise CheckpointError(f"{path}: neither a run directory with checkpoints nor a checkpoint")
    return newest[0], path


def config_of(root: Path, meta: Mapping[str, Any], overrides: list[str]) -> Config:
    """The run's config, or where a checkpoint lies alone its own copy, with the overrides.

    Images that are not where its relative path says, as seen from here, are taken from where the run
    had them.
    """
    file = RunPaths(root).config
    if file.is_file() or "config" not in meta:
        cfg = load_config(file, overrides)
    else:
        cfg = parse_config(yaml.safe_dump(meta["config"]), "the checkpoint's config", overrides)
    split = cfg.data.val_share is not None  # then data.train names the validation images, too
    given = {override.partition("=")[0].strip() for override in overrides}
    recorded = meta.get("data", {})
    found = {}
    for kind, path in (("train", cfg.data.train), ("val", None if split else cfg.data.val_path)):
        begun = recorded.get("val" if split else kind, {}).get("path")
        if path and begun and f"data.{kind}" not in given and _is_there(begun, path):
            found[kind] = begun
    return cfg.model_copy(update={"data": cfg.data.model_copy(update=found)}) if found else cfg


def require_held_out(cfg: Config, meta: Mapping[str, Any], found: str) -> None:
    """Raise DataError if `data.val` is a share, but of other images than those that the checkpoint
    was not trained with. `found`: the fingerprint of the images."""
    recorded = meta.get("data", {}).get("val", {}).get("fingerprint")
    if cfg.data.val_share is not None and found != recorded:
        raise DataError(
            f"data.val: {cfg.data.val_share:g} of {cfg.data.train} are not the images that this run "
            "held out, so it may have been trained with them: evaluate with the data.val, seed and "
            "images of the run, or name other images with data.val=DIR"
        )


def _is_there(begun: str, val: str) -> bool:
    """Whether the validation images are where the run had them, at the absolute path `begun`, and
    not at `val` below the present folder. Neither needs to be a file: it may be a pattern."""
    if os.path.exists(val) and not os.path.exists(begun):  # noqa: PTH110
        return False
    return Path(begun).parent.is_dir()
