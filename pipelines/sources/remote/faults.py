"""What went wrong with a request: what may pass is an OSError, anything else a DataError."""

from __future__ import annotations

import errno

from hvdtrain.errors import DataError


def refused(url: str, status: int) -> Exception:
    """The error for an answer without the bytes: an OSError if it may pass, else a DataError."""
    if status in (408, 425, 429) or status >= 500:
        return passing(f"HTTP {status}")
    meaning = {
        401: "access refused",
        403: "access refused",
        404: "no such object",
        410: "no such object",
    }
    return DataError(f"{url}: {meaning.get(status, 'not the bytes asked for')} (HTTP {status})")


def passing(text: str) -> OSError:
    """A fault that may pass: a read is tried again."""
    return OSError(errno.EREMOTEIO, text)


def root_cause(error: BaseException) -> str:
    """What the system said at the bottom of an exception, without the texts above it."""
    at: BaseException | None = error
    for _ in range(20):
        if at is None:
            break
        if isinstance(at, OSError) and at.errno is not None and at.strerror:
            return " ".join(str(at.strerror).split())[:100]
        at = at.__cause__ or at.__context__
    return "the connection was cut"
