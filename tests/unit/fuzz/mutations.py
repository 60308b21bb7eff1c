"""Valid files, damaged by a few small changes: what a reader must refuse in one line, or read."""

from __future__ import annotations

import os
import resource
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from hvdtrain.errors import ConfigError, HvdtrainError

EXAMPLES = int(os.environ.get("FUZZ", "0"))
"""Inputs for each reader, random ones; 0: few, always the same ones."""
FEW = 40
LIMIT_S = 60
"""Longest time for one input: far more than any takes, on a busy machine as well."""
LIMIT_BYTES = 2**30
"""Most memory that one input may add."""

TOKENS = (
    *(b"\0", b"\n", b"\r", b"\t", b" ", b"\\", b'"', b"'", b":", b",", b"-", b"[", b"]", b"{", b"}", b"#"),
    *(b"\xff\xfe", b"\xef\xbb\xbf", b"\xed\xa0\x80", b"\xe2\x80\xae", b"\xc3\xa9", b"\x1b[31m", b"\xff" * 8),
    *(b"-1", b"0", b"1e999", b"NaN", b"-Infinity", b"null", b"true", b"[]", b"{}", b'""', b"0x10", b"1.5"),
    *(b"9" * 20, b"9" * 400, b"9" * 5000, b"[" * 3000, b'{"a":' * 3000, b"a" * 5000, b"- " * 500),
    *(b"../" * 9, b"/dev/zero", b"/etc/passwd", b"[0-999999999]", b"[1-9][1-9]", b"(x99999999)", b"{0..9999999}"),
    *(b"&a [*a, *a]", b"!!python/object:os.system x", b"<<: *a", b"%n%s", b"\\ud800", b"\\u0000", b"slots=4"),
)  # fmt: skip


class Change(NamedTuple):
    """One change of a file."""

    kind: str
    place: float
    """Share of the file before it."""
    length: int
    token: bytes


CHANGES = st.lists(
    st.builds(
        Change,
        st.sampled_from(("flip", "cut", "insert", "replace", "duplicate", "delete", "swap")),
        st.floats(0, 1),
        st.one_of(st.integers(1, 16), st.integers(1, 600)),
        st.one_of(st.sampled_from(TOKENS), st.binary(min_size=1, max_size=8)),
    ),
    min_size=1,
    max_size=4,
)


def changed(content: bytes, changes: list[Change]) -> bytes:
    """`content` after all `changes`, at most twice as long and 100 kB more."""
    most = 2 * len(content) + 100_000
    for change in changes:
        at, data = int(change.place * len(content)), content
        part, rest = data[at : at + change.length], data[at + change.length :]
        content = {
            "flip": data[:at] + bytes(byte ^ 1 << change.length % 8 for byte in data[at : at + 1]) + data[at + 1 :],
            "cut": data[:at],
            "insert": data[:at] + change.token + data[at:],
            "replace": data[:at] + change.token + rest,
            "duplicate": data[:at] + part + data[at:],
            "delete": data[:at] + rest,
            "swap": data[:at] + rest[: len(part)] + part + rest[len(part) :],
        }[change.kind][:most]  # fmt: skip
    return content


def fuzzed(test: Callable[..., Any]) -> Callable[..., Any]:
    """Settings of a test that takes changes."""
    wrapped: Callable[..., Any] = settings(
        max_examples=EXAMPLES or FEW,
        derandomize=not EXAMPLES,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )(test)
    return wrapped


@contextmanager
def bounded() -> Iterator[None]:
    """A context with bounds on time and memory."""

    def late(*_: object) -> None:
        raise AssertionError(f"not done after {LIMIT_S} s")

    before = signal.signal(signal.SIGALRM, late)
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (size + LIMIT_BYTES, hard))
    signal.setitimer(signal.ITIMER_REAL, LIMIT_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        signal.signal(signal.SIGALRM, before)


def read_or_refused(read: Callable[[], object]) -> bool:
    """Whether `read` took its input; it may only raise errors of ours, each of one printable line."""
    with bounded():
        try:
            read()
        except HvdtrainError as error:
            lines = error.problems if isinstance(error, ConfigError) else (str(error),)
            for line in lines:
                assert line
                assert len(line) < 3000, line
                assert not any(c < " " or "\x7f" <= c < "\xa0" for c in line), repr(line)
            return False
    return True
