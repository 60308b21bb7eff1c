"""Whether a config fits its data, its model and the number of ranks: for `hvdtrain doctor CONFIG`.

A run finds the same faults when it builds these parts.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

import torch

from hvdtrain.config.object_urls import client, is_url
from hvdtrain.config.schema import Config
from hvdtrain.config.trackers import require_trackers
from hvdtrain.errors import HvdtrainError
from hvdtrain.models import build_model
from hvdtrain.plan.epochs import make_plan
from hvdtrain.plan.images import check_counts
from hvdtrain.plan.recipe_check import recipe_warnings
from hvdtrain.preflight.facts import Facts
from hvdtrain.preflight.finding import Finding


def config_findings(cfg: Config, facts: Sequence[Facts]) -> Iterator[Finding]:
    """What is wrong with the config itself; the same on all ranks."""
    try:
        if cfg.checkpoint.mirror is not None and is_url(cfg.checkpoint.mirror):
            client(cfg.checkpoint.mirror)
    except HvdtrainError as error:
        yield Finding("mirror", "", str(error), "", type(error))
    try:
        require_trackers(cfg.metrics, os.environ)
    except HvdtrainError as error:
        yield Finding("tracker", "", str(error), "", type(error))
    seen = [data for one in facts for data in one.data if data.key == "data.train"]
    train = next((data for data in seen if data.classes), None)
    try:
        with torch.device("meta"):  # no memory
            found = train.classes if train else None
            build_model(cfg.model, cfg.model.num_classes or found or cfg.expected.classes or 1000)
    except HvdtrainError as error:
        yield Finding("model", "model", str(error), "", type(error))
    except (RuntimeError, NotImplementedError):
        pass  # a network of another library that needs its memory
    try:
        if train is not None:
            check_counts(cfg, train.count, train.classes)
        if train is not None or cfg.planned_images is not None:
            plan = make_plan(cfg, len(facts), train.count if train is not None else None)
            for text in recipe_warnings(cfg, plan):
                yield Finding("recipe", "recipe", text, "")
    except HvdtrainError as error:
        yield Finding("plan", "plan", str(error), "", type(error))
