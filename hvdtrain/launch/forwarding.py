"""The environment variables that are forwarded to ranks on other hosts.

Secrets are not forwarded: other users can read command lines and job logs. A secret belongs in a
file that only its owner can read.
"""

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
    """Names of the variables of `env` to forward, sorted: the usual ones and `more`.

    Names that look like secrets are left out. Raises ConfigError if `more` has one of these, or
    one that is not set.
    """
    for name in more:
        if SECRET.search(name):
            raise ConfigError(
                f"--forward {name}: looks like a secret, which other users could read: put it into "
                "a file with mode 0600 and name the file in the config"
            )
        if name not in env:
            raise ConfigError(f"--forward {name}: is not set: export it first")
    usual = (name for name in env if name in FORWARDED or name.startswith(PREFIXES))
    return sorted({name for name in usual if not SECRET.search(name)} | set(more))


def kept_back(env: Mapping[str, str]) -> list[str]:
    """Names of variables that are not forwarded because they look like secrets."""
    return sorted(name for name in env if name.startswith(PREFIXES) and SECRET.search(name))
