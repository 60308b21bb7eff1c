"""What a launcher prints: copied on, without its own remarks about ranks that end because they were told to."""

from __future__ import annotations

import contextlib
import os
import re
import threading
from collections import deque
from collections.abc import Callable
from typing import IO

COPY_S = 5.0
"""Time for the last output after the command has ended; a process it left behind may keep it open."""
LAST, LONGEST = 200, 4096
"""Lines that are kept, and bytes of one."""
RULE = re.compile(rb"-{60,}\s*$")
"""A line before and after each of mpirun's messages."""
REMARK = re.compile(rb"mpirun: (Forwarding signal|killing job)")


class Copy:
    """A thread that copies `source` to a descriptor, and reads on when nobody reads that any more.

    mpirun would abort when it cannot write. As long as `holding` returns true, mpirun's own messages
    are held back.
    """

    def __init__(
        self, source: IO[bytes] | None, target: int, holding: Callable[[], bool] = lambda: False
    ) -> None:
        self._source, self._target, self._holding = source, target, holding
        self._held: list[bytes] = []
        self.last: deque[str] = deque(maxlen=LAST)
        """The last lines, shown or held back."""
        self._timers: list[tuple[re.Pattern[str], threading.Timer]] = []
        self._in_message = False
        self._rest = self._unfinished = b""
        self._broken = False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def then(self, beginning: str, timer: threading.Timer) -> None:
        """Start a timer at the first line that begins in this way."""
        timer.daemon = True
        self._timers.append((re.compile(beginning), timer))

    def finish(self, *, show_held: bool) -> None:
        """Wait for the end of the output; `show_held`: write what was held back."""
        self._thread.join(COPY_S)
        self._timers.clear()
        if show_held:
            self._write(b"".join(self._held))

    def _run(self) -> None:
        with self._source or contextlib.nullcontext():
            while self._source is not None and (text := os.read(self._source.fileno(), 1 << 16)):
                self._keep(text)
                self._write(self._passed(text))
        self._write(self._rest)

    def _keep(self, text: bytes) -> None:
        """Keep whole lines in `last`."""
        *lines, self._unfinished = (self._unfinished + text).split(b"\n")
        texts = [line.decode(errors="replace") for line in lines]
        self.last.extend(texts)
        for beginning, timer in list(self._timers):
            if any(beginning.match(text) for text in texts):
                self._timers.remove((beginning, timer))
                timer.start()
        self._unfinished = self._unfinished[-LONGEST:]

    def _passed(self, text: bytes) -> bytes:
        """What is not held back of `text`; a part of a line is passed at once unless it may belong to a
        message."""
        if not self._holding() and not self._rest and not self._in_message:
            return text
        *lines, self._rest = (self._rest + text).splitlines(keepends=True) or [b""]
        if self._rest.endswith(b"\n"):
            lines, self._rest = [*lines, self._rest], b""
        return b"".join(line for line in lines if not self._hold(line))

    def _hold(self, line: bytes) -> bool:
        rule = RULE.match(line) is not None
        held = rule or self._in_message or REMARK.match(line) is not None
        if rule:
            self._in_message = not self._in_message
        if held:
            self._held.append(line)
        return held

    def _write(self, text: bytes) -> None:
        while text and not self._broken:
            try:
                text = text[os.write(self._target, text) :]
            except OSError:
                self._broken = True
