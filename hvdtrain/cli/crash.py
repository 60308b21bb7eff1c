"""What a user sees of an error that nobody foresaw: one line, with the traceback in a file."""

from __future__ import annotations

import platform
import re
import sys
import tempfile
import traceback
from pathlib import Path
from types import TracebackType

from hvdtrain import __version__, activity
from hvdtrain.errors import HvdtrainError, InternalError, ResourceError, is_out_of_memory
from hvdtrain.streams import print_error_line

PACKAGES = ("hvdtrain", "pipelines")


def unexpected(error: BaseException) -> HvdtrainError:
    """The error to show for one that is none of ours: lacking memory, or a bug."""
    if is_out_of_memory(error):
        return _out_of_memory(error)
    return _no_thread() if _lacks_threads(error) else internal_error(error)


def _lacks_threads(error: BaseException) -> bool:
    """Whether the system refused a new thread: Python's words for it, or those of C++."""
    words = ("can't start new thread", "resource temporarily unavailable")
    return isinstance(error, RuntimeError) and str(error).lower().startswith(words)


def _no_thread() -> ResourceError:
    return ResourceError(
        f"no new thread could be started during: {activity.text()}: raise the limit of processes "
        "(ulimit -u, pids.max of the control group) or of memory (ulimit -v), or reduce "
        "data.decode_threads or train.compute_threads, or start fewer ranks"
    )


def _out_of_memory(error: BaseException) -> ResourceError:
    """What was being done, how much memory was asked for, and what would need less."""
    said = " ".join(str(error).split())
    asked = re.search(r"ried to allocate [\d.]+ ?\w+|allocate [\d.]+ ?[KMGTPE]iB", said)
    amount = f" ({asked.group().replace('ried', 'tried', 1)})" if asked else ""
    on_gpu = "cuda" in said.lower()
    where = "out of memory on the GPU" if on_gpu else "out of memory"
    fix = "use fewer --threads, or a machine with more memory"
    if "torch" in sys.modules:
        fix = (
            "reduce phases.N.batch_per_worker (hvdtrain tune batch finds the largest that fits; "
            "train.accumulate keeps the global batch) or image_size"
        )
        fix += "" if on_gpu else ", data.decode_threads or data.cache, or start fewer ranks"
    return ResourceError(f"{where} during: {activity.text()}{amount}: {fix}")


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
        print_error_line(about + trace)
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
