"""Whose a mirror is: of a run directory, and of one run in it."""

from __future__ import annotations

import json
import secrets
from typing import NamedTuple

from hvdtrain.config.overrides import printable
from hvdtrain.errors import ResourceError
from hvdtrain.files import write_atomically
from hvdtrain.paths import RunPaths

OWNER = "mirror.json"
"""In the mirror of a run: the run directory that it is the mirror of, and the run's number."""


class Owner(NamedTuple):
    """The run that a mirror belongs to."""

    run: str
    """Its directory; empty: none."""
    number: str
    """Empty in mirrors of older versions."""


def owner_file(owner: Owner) -> bytes:
    """What `mirror.json` holds."""
    return json.dumps({"run": owner.run, "id": owner.number}).encode()


def owner_in(data: bytes) -> Owner:
    """What `mirror.json` names."""
    try:
        found = json.loads(data)
        return Owner(str(found["run"]), str(found.get("id", "")))
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return Owner("", "")


def run_id(paths: RunPaths) -> str:
    """The number of a run; empty if it has none yet."""
    try:
        return (paths.mirror_id).read_text("ascii").strip()
    except (OSError, ValueError):
        return ""


def owner_for(paths: RunPaths, where: str, found: Owner | None) -> Owner:
    """The run of `paths` as owner of the mirror at `where`, which is new (None) or has an owner.

    Raises ResourceError if that is another.
    """
    number, root = run_id(paths), str(paths.root.resolve())
    found = found or Owner(root, "")
    if found.run != root:
        whose = f"is the mirror of {printable(found.run)}" if found.run else "is no mirror"
        raise ResourceError(f"{where}: {whose}: nothing is copied there")
    if found.number and found.number != number:
        raise ResourceError(
            f"{where}: is the mirror of an earlier run in {root}: nothing is copied there; choose "
            "another checkpoint.mirror, or go on with that run by --resume"
        )
    if not number:
        number = secrets.token_hex(8)
        write_atomically(paths.mirror_id, number.encode())
    return Owner(root, number)
