"""The list of a run's bad images on the disk: one JSON object a line, read however damaged it is."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

from hvdtrain.files import write_atomically
from pipelines.bad import REASONS, BadSample


class Images(Protocol):
    """What is needed of the training images."""

    def __len__(self) -> int: ...

    def name(self, i: int) -> str: ...


def read_list(path: Path, images: Images) -> tuple[list[BadSample], str]:
    """The list, and what is wrong with the file: empty if nothing is, or there is no file.

    A line counts as damaged if it is no whole entry, or names another image than `images` has at its
    number. Raises nothing.
    """
    if not path.exists():
        return [], ""
    try:
        lines = path.read_bytes().split(b"\n") if path.is_file() else None
    except OSError as error:
        return [], f"cannot be read ({error.strerror})"
    if lines is None:
        return [], "is no file"
    found = [_entry(line, images) for line in lines if line.strip()]
    good = {bad.index: bad for bad in found if bad is not None}
    damaged = found.count(None)
    return list(good.values()), f"{damaged} of {len(found)} lines are damaged" if damaged else ""


def write_list(path: Path, samples: Iterable[BadSample]) -> None:
    """Replace the list. Raises ResourceError if the disk refuses."""
    write_atomically(path, "".join(json.dumps(asdict(bad)) + "\n" for bad in samples).encode())


def _entry(line: bytes, images: Images) -> BadSample | None:
    try:
        values: Any = json.loads(line)
        bad = BadSample(**values)
    except (ValueError, TypeError, RecursionError):  # of UnicodeDecodeError, too
        return None
    numbers = [bad.index, bad.epoch, *([] if bad.crc32 is None else [bad.crc32])]
    whole = all(type(number) is int and number >= 0 for number in numbers)
    texts = all(isinstance(text, str) for text in (bad.reason, bad.name, bad.detail))
    if not whole or not texts or bad.reason not in REASONS or bad.index >= len(images):
        return None
    # The folder may have moved since; of a packed dataset the name of the copy follows.
    own = images.name(bad.index).rpartition("/")[2]
    return bad if own in bad.name else None
