"""Which environment variables travel to the ranks. Secrets do not: a file that only its owner can
read is the place for them, since command lines and job logs can be read by others."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from hvdtrain.errors import ConfigError

FORWARDED = ("PATH", "LD_LIBRARY_PATH", "PYTHONPATH", "PYTHONUNBUFFERED", "VIRTUAL_ENV", "TMPDIR")
PREFIXES = ("HOROVOD_", "NCCL_", "OMP_", "MKL_", "GLOO_", "HVDTRAIN_")
SECRET = re.compile(
    r"TOKEN|SECRET|PASSW|PASSPHRASE|CREDENTIAL|(^|_)(API|PRIVATE|ACCESS)?KEY", re.IGNORECASE
)


def forwarded(env: Mapping[str, str], more: Iterable[str] = ()) -> list[str]:
    """Names of the variables of `env` to forward, sorted: the usual ones, and `more`.

    What is named like a secret is left out. Raises ConfigError if `more` names such, or what is
    not set.
    """
    for name in more:
        if SECRET.search(name):
            raise ConfigError(
                f"--forward {name}: looks like a secret, which others could read on the way: put "
                "it into a file with mode 0600 that the config names"
            )
        if name not in env:
            raise ConfigError(f"--forward {name}: is not set here: export it first")
    usual = (name for name in env if name in FORWARDED or name.startswith(PREFIXES))
    return sorted({name for name in usual if not SECRET.search(name)} | set(more))


def kept_back(env: Mapping[str, str]) -> list[str]:
    """Names of variables that would be forwarded but for looking like secrets."""
    return sorted(n for n in env if n.startswith(PREFIXES) and SECRET.search(n))
