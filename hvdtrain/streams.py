"""Standard output and error whose reader may go away, or that cannot show every character."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import sys
import threading
from collections.abc import Callable
from typing import Any, TextIO


def prepare_streams() -> None:
    """Have both streams escape what their encoding lacks, for example names in an ASCII terminal.

    One that was closed (`>&-`) becomes the null device: the next file would take its descriptor.
    """
    for descriptor, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(descriptor, "w" if descriptor else "r", closefd=False))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def discard(stream: TextIO) -> None:
    """Send all further output of this stream nowhere, so that no later write or flush fails."""
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
        stream.flush()


_status = threading.Event()
"""Set while a status line is on the terminal."""


def show_status(text: str) -> None:
    """Replace the status line, a line on standard error that the next output removes.

    For terminals only; it is cut to their width.
    """
    width = shutil.get_terminal_size().columns - 1
    with contextlib.suppress(OSError, ValueError):
        _status.set()
        sys.stderr.write(f"\r\x1b[K{text[:width]}")
        sys.stderr.flush()


def clear_status() -> None:
    """Remove the status line, if there is one."""
    if _status.is_set():
        _status.clear()
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()


_cursor_hidden = threading.Event()


def cursor_is_hidden(hidden: bool) -> None:
    """Note that a progress bar hides the terminal's cursor, or does so no more."""
    (_cursor_hidden.set if hidden else _cursor_hidden.clear)()


def show_cursor() -> None:
    """Remove a progress bar whose process ends without closing it, and show the cursor again."""
    if _cursor_hidden.is_set():
        _cursor_hidden.clear()
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.write("\r\x1b[K\x1b[?25h")
            sys.stdout.flush()


def print_error_line(text: str) -> None:
    """One line on standard error, if somebody still reads it."""
    clear_status()
    try:
        # In one piece: mpirun and horovodrun write a prefix before each piece, even a line's end.
        sys.stderr.write(text + "\n")
        sys.stderr.flush()
    except (OSError, ValueError):
        discard(sys.stderr)


def print_error(text: str) -> None:
    """Print each line of `text` to stderr, marked as an error of hvdtrain.

    Characters that a terminal would obey are written out.
    """
    for line in text.split("\n"):
        shown = "".join(c if c.isprintable() else repr(c)[1:-1] for c in line)
        print_error_line(f"hvdtrain: error: {shown}")


def say(text: str) -> None:
    """One text on standard output, if somebody still reads it."""
    output = Output(lambda _reason: None)
    output.write(text + "\n")
    output.flush()


class Output:
    """Standard output for a run: when its reader goes away, `lost` gets the reason, once."""

    def __init__(self, lost: Callable[[str], None]) -> None:
        self._lost = lost

    def write(self, text: str) -> int:
        """Write `text`; what the encoding lacks is escaped. It replaces a status line."""
        clear_status()
        try:
            sys.stdout.write(text)
        except UnicodeEncodeError:
            encoding = sys.stdout.encoding
            sys.stdout.write(text.encode(encoding, "backslashreplace").decode(encoding))
        except OSError as error:
            self._give_up(error)
        return len(text)

    def flush(self) -> None:
        """Have it read now."""
        try:
            sys.stdout.flush()
        except OSError as error:
            self._give_up(error)

    def __getattr__(self, name: str) -> Any:
        return getattr(sys.stdout, name)

    def _give_up(self, error: OSError) -> None:
        discard(sys.stdout)
        self._lost(error.strerror or type(error).__name__)
