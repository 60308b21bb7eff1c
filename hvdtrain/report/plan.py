"""The plan of a run that is over, made again from what it left."""

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
    """`plan_text` of the run's config, or one line that says why there is none."""
    ranks = run.attempts[-1].world_size or whole(run.environment, "world_size")
    if not run.paths.config.is_file() or ranks is None:
        missing = "environment.json" if run.paths.config.is_file() else "config.yaml"
        return f"No plan: the run directory has no {missing}."
    try:
        cfg = load_config(run.paths.config)
        images = _train_images(run, cfg)
        if images is None:
            return "No plan: the run does not tell its number of training images."
        return plan_text(cfg, make_plan(cfg, ranks, images))
    except HvdtrainError as error:
        first = str(error).partition("\n")[0]
        return f"No plan: the config does not load with this version of hvdtrain: {first}"


def _train_images(run: RunRecord, cfg: Config) -> int | None:
    """Images of an epoch: by the config, by a checkpoint, or by how far the samples led."""
    if cfg.data.train_size is not None:
        return cfg.data.train_size
    for file in sorted(run.paths.checkpoints.glob("*/meta.json")):
        try:
            return int(
                json.loads(file.read_text(encoding="utf-8"))["meta"]["labels"]["train_images"]
            )
        except (OSError, ValueError, KeyError, TypeError):
            continue
    last = run.train[-1] if run.train else None
    return round(last.samples / last.epoch) if last and last.samples and last.epoch > 0 else None
