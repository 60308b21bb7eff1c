"""hvdtrain: large-batch image-classifier training on Ethernet clusters.

The Python API, see docs/how-to/python.md; `__init__.pyi` has its types.
"""

from importlib import import_module as _import_module
from typing import Any as _Any

__version__ = "0.1.0"

_OFFERED = {
    "load_config": "hvdtrain.config.load",
    "build_model": "hvdtrain.api.functions",
    "Loaders": "hvdtrain.api.loaders",
    "load": "hvdtrain.inference.classifier",
    "HvdtrainError": "hvdtrain.errors",
}
"""Name → module that has it. Nothing is imported before its name is used."""
_MODULES = {
    "plan": "hvdtrain.plan",
    "train": "hvdtrain.train",
    "watch": "hvdtrain.telemetry.watch",
}
"""Name → module of that name here; `plan` and `train` can be called."""


def __getattr__(name: str) -> _Any:
    """What the package offers, imported at its first use."""
    if name in _MODULES:
        return _import_module(_MODULES[name])
    if name in _OFFERED:
        return getattr(_import_module(_OFFERED[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_OFFERED, *_MODULES})
