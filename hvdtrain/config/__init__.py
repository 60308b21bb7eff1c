"""The configuration: its schema, and how YAML files are read into it.

The sections of the schema can be imported from here: `from hvdtrain.config import Config, Model`.
They are loaded at their first use, since `pipelines` needs only `config.data` and `config.fields`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hvdtrain.config.schema import (
        Checkpoint,
        Comm,
        Config,
        Data,
        Expected,
        LearningRate,
        Metrics,
        Model,
        Optimizer,
        Phase,
        Section,
        Train,
    )

__all__ = [
    "Checkpoint",
    "Comm",
    "Config",
    "Data",
    "Expected",
    "LearningRate",
    "Metrics",
    "Model",
    "Optimizer",
    "Phase",
    "Section",
    "Train",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from hvdtrain.config import schema

    return getattr(schema, name)
