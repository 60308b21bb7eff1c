"""The folder that `--output` names."""

from __future__ import annotations

from pathlib import Path

from hvdtrain.errors import ResourceError


def require_free(output: Path, *, overwrite: bool) -> None:
    """Raise ResourceError if `output` is no folder, or has files that are not to be replaced."""
    try:
        if output.exists() and not output.is_dir():
            raise ResourceError(f"--output {output}: not a folder; name another")
        if output.is_dir() and any(output.iterdir()) and not overwrite:
            raise ResourceError(
                f"--output {output}: has files; name another folder, or replace its results with "
                "--overwrite"
            )
    except OSError as error:
        raise ResourceError(f"--output {output}: cannot be read: {error.strerror}") from None
