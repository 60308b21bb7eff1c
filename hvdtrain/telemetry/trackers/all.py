"""The trackers that a config and the environment ask for."""

from __future__ import annotations

import os
from collections.abc import Callable

from hvdtrain import __version__
from hvdtrain.config.kinds import settings
from hvdtrain.config.schema import Config
from hvdtrain.paths import RunPaths
from hvdtrain.telemetry.trackers import kubeflow
from hvdtrain.telemetry.trackers.sink import Tracker

TITLES = {"wandb": "Weights & Biases", "mlflow": "MLflow", "kubeflow": "Kubeflow Trainer"}
"""What notes begin with."""


def trackers(cfg: Config, paths: RunPaths, note: Callable[[str], None]) -> list[Tracker]:
    """Those of rank 0. Nothing is started before training is.

    The section `metrics` is not sent: it names hosts and files of keys.
    """
    places = {"wandb": cfg.metrics.wandb, "mlflow": cfg.metrics.mlflow}
    places["kubeflow"] = kubeflow.server_in(os.environ)
    config = {one.key: one.value for one in settings(cfg) if not one.key.startswith("metrics.")}
    about = {
        "run": paths.name,
        "root": str(paths.root.resolve()),
        "config": config,
        "version": __version__,
    }
    return [
        Tracker(name, TITLES[name], {**about, "place": place}, note)
        for name, place in places.items()
        if place is not None
    ]
