"""What a user sees of an error that nobody foresaw: one line, with the traceback in a file."""

from __future__ import annotations

import platform
import sys
import tempfile
import traceback
from pathlib import Path
from types import TracebackType

from hvdtrain import __version__
from hvdtrain.errors import InternalError

PACKAGES = ("hvdtrain", "pipelines")


def internal_error(error: BaseException) -> InternalError:
    """The error to show for `error`, whose traceback is written to a file of its own.

    If no file can be written, the traceback goes to stderr.
    """
    trace = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    about = f"hvdtrain {__version__}, Python {platform.python_version()}, {' '.join(sys.argv)}\n\n"
    text = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    where = _place(error.__traceback__)
    try:
        with tempfile.NamedTemporaryFile(
            "w", prefix="hvdtrain-crash-", suffix=".txt", delete=False, errors="backslashreplace"
        ) as file:
            file.write(about + trace)
        return InternalError(
            f"internal error at {where}: {text}; this is a bug of hvdtrain: please report it with "
            f"{file.name}, which has the traceback"
        )
    except OSError:
        print(about + trace, file=sys.stderr, flush=True)
        return InternalError(
            f"internal error at {where}: {text}; this is a bug of hvdtrain: please report it with "
            "the traceback above"
        )


def _place(trace: TracebackType | None) -> str:
    """Module and line of the innermost frame in hvdtrain's own code."""
    frames = traceback.extract_tb(trace)
    for frame in reversed(frames):
        parts = Path(frame.filename).parts
        for package in PACKAGES:
            if package in parts[:-1]:
                last = len(parts) - 1 - parts[::-1].index(package)
                return f"{'/'.join(parts[last:])}:{frame.lineno}"
    return f"{frames[-1].filename}:{frames[-1].lineno}" if frames else "an unknown place"
