"""The libraries that the section `metrics` asks for. Imports none of them."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec

from hvdtrain.config.metrics import Metrics
from hvdtrain.errors import ResourceError

TRACKING_URI = "MLFLOW_TRACKING_URI"
"""MLflow's own variable; the URI may hold a password, so no setting of ours has it."""


def require_trackers(metrics: Metrics, env: Mapping[str, str]) -> None:
    """Raises ResourceError if a tracker cannot be used here: its library is missing, or its server is
    not named. Only rank 0 uses them."""
    needs = (
        ("wandb", metrics.wandb, "wandb"),
        ("mlflow", metrics.mlflow, "mlflow-skinny"),
    )
    for name, place, package in needs:
        if place is not None and not _found(name):
            raise ResourceError(
                f"metrics.{name}: {name} cannot be imported: pip install {package}, or set "
                f"metrics.{name}=null"
            )
    if metrics.mlflow is not None and not env.get(TRACKING_URI):
        raise ResourceError(
            f"metrics.mlflow: {TRACKING_URI} is not set: export the address of the MLflow server, for "
            "example http://tracking:5000, on the host of rank 0, or set metrics.mlflow=null"
        )


def _found(name: str) -> bool:
    """Whether the module is installed; a folder of that name, such as the `wandb` that the library
    makes, does not count."""
    try:
        spec = find_spec(name)
    except (ImportError, ValueError):
        return False
    return spec is not None and spec.origin is not None
