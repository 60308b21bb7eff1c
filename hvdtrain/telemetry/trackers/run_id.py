"""The id of a run in a tracker, kept in the run directory, so that a resumed run goes on there."""

from __future__ import annotations

import re
from pathlib import Path

from hvdtrain.errors import HvdtrainError
from hvdtrain.files import open_regular, write_atomically

_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")


def read_id(path: Path) -> str | None:
    """None without such a file. Raises HvdtrainError if it holds something else."""
    try:
        with open_regular(path) as file:
            text = file.read(100).decode(errors="replace").strip()
    except FileNotFoundError:
        return None
    if not _ID.fullmatch(text):
        raise HvdtrainError(f"{path}: expected the id of a run: delete it to begin a new one there")
    return text


def keep_id(path: Path, run_id: str) -> None:
    """Raises ResourceError if it cannot be written."""
    write_atomically(path, f"{run_id}\n".encode())
