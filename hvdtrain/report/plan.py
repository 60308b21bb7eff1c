"""The plan of an earlier run, made again from its directory."""

from __future__ import annotations

import json

from hvdtrain.config.load import load_config
from hvdtrain.config.schema import Config
from hvdtrain.errors import HvdtrainError
from hvdtrain.plan.epochs import make_plan
from hvdtrain.plan.text import plan_text
from hvdtrain.report.events import whole
from hvdtrain.report.run import RunRecord


def plan_of(run: RunRecord) -> str:
    """`plan_text` of the run's config, or one line that says why it cannot be made."""
    ranks = run.attempts[-1].world_size or whole(run.environment, "world_size")
    if not run.paths.config.is_file() or ranks is None:
        missing = "environment.json" if run.paths.config.is_file() else "config.yaml"
        return f"No plan: the run directory has no {missing}."
    try:
        cfg = load_config(run.paths.config)
        images = _train_images(run, cfg)
        if images is None:
            return "No plan: the number of training images is not in the run directory."
        return plan_text(cfg, make_plan(cfg, ranks, images))
    except HvdtrainError as error:
        first = str(error).partition("\n")[0]
        return f"No plan: the config does not load with this version of hvdtrain: {first}"


def _train_images(run: RunRecord, cfg: Config) -> int | None:
    """Images of an epoch: from the config, a checkpoint, or the samples per epoch so far."""
    if cfg.data.train_size is not None:
        return cfg.data.train_size
    for file in sorted(run.paths.checkpoints.glob("*/meta.json")):
        try:
            return int(
                json.loads(file.read_text(encoding="utf-8"))["meta"]["labels"]["train_images"]
            )
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            continue
    last = run.train[-1] if run.train else None
    return round(last.samples / last.epoch) if last and last.samples and last.epoch > 0 else None
