"""The bad training images of a run: each rank counts its own, and rank 0 lists all of them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hvdtrain.comm.ranks import Comm
from hvdtrain.config.data import Data
from hvdtrain.errors import DataError
from hvdtrain.files import write_atomically
from hvdtrain.telemetry.meter import BadCounts
from hvdtrain.telemetry.reports import Note
from hvdtrain.telemetry.sinks import Sinks
from pipelines.bad import BadSample

NAMED = 5
"""Most bad images in one line of the log; the list in the run directory has all of them."""
KINDS = {"index": int, "epoch": int, "reason": str, "name": str, "detail": str}
"""Fields of a BadSample in the list, and their types."""


class BadSamples:
    """The run's bad images, as one rank knows them; rank 0 writes the list to `path`.

    The meter sums the counts over ranks. The ranks exchange names only after an interval in which
    some rank met an image that is not on the list yet.
    """

    def __init__(self, data: Data, comm: Comm, path: Path) -> None:
        self._limit = data.max_bad_ratio
        self._comm = comm
        self._path = path
        self._listed: dict[int, BadSample] = {}
        self._unlisted: dict[int, BadSample] = {}
        self._changed: list[str] = []
        self._masked = 0
        self._masked_in_epoch = 0

    def read(self, sinks: Sinks | None = None) -> list[dict[str, Any]]:
        """The list that an earlier attempt left; empty on other ranks than 0.

        Damaged lines are left out, with a note: their images are read again.
        """
        if self._comm.rank:
            return []
        try:
            lines = self._path.read_bytes().splitlines() if self._path.is_file() else []
        except OSError as error:
            lines, text = [], f"cannot be read: {error.strerror}"
        else:
            text = ""
        entries = [entry for line in lines if line.strip() and (entry := _entry(line))]
        if damaged := sum(bool(line.strip()) for line in lines) - len(entries):
            text = f"{damaged} damaged line{'s' if damaged > 1 else ''}"
        if text and sinks is not None:
            sinks.write(Note(f"warning: {self._path}: {text}: what it names is tried again"))
        return entries

    def restore(self, entries: list[dict[str, Any]]) -> list[BadSample]:
        """Take over the list that rank 0 has `read`, on every rank; returns its images."""
        self._listed = {entry["index"]: BadSample(**entry) for entry in entries}
        return list(self._listed.values())

    def start_epoch(self) -> None:
        """Set the count for `max_bad_ratio` to 0."""
        self._masked_in_epoch = 0

    def add(self, masked: Iterable[BadSample], sinks: Sinks) -> None:
        """Count the images masked in one batch of this rank."""
        for bad in masked:
            self._masked += 1
            if bad.index not in self._listed:
                self._unlisted[bad.index] = bad
            sinks.observe_bad(bad.reason)

    def add_changed(self, names: Iterable[str]) -> None:
        """Files that this rank has found to change while the run uses them."""
        self._changed += names

    def counts(self) -> BadCounts:
        """The counts of this rank since the last `settle`."""
        return BadCounts(self._masked, len(self._unlisted) + len(self._changed))

    def settle(self, counts: BadCounts, num_samples: int, sinks: Sinks) -> list[BadSample]:
        """List and report the new bad images of all ranks, and return them.

        Every rank calls with the sums of `counts` over all ranks. Raises DataError on every rank
        when more than `max_bad_ratio` of the `num_samples` images of this epoch are masked.
        """
        self._masked = 0
        self._masked_in_epoch += counts.masked
        new, changed = self._exchange() if counts.unlisted else ([], [])
        if changed:
            sinks.write(Note(_changed_note(changed)))
        if new:
            sinks.write(Note(_note(new, self._path)))
            if self._comm.rank == 0:
                lines = [json.dumps(asdict(bad)) + "\n" for bad in self._listed.values()]
                write_atomically(self._path, "".join(lines).encode())
        if self._masked_in_epoch > self._limit * num_samples:
            fault = DataError(
                f"data.max_bad_ratio: {self._masked_in_epoch} bad images so far in this epoch, "
                f"more than {self._limit:g} of {num_samples:,}; all are listed in {self._path}"
            )
            fault.everywhere = True
            raise fault
        return new

    def _exchange(self) -> tuple[list[BadSample], list[str]]:
        """The new bad images and the changed files of all ranks."""
        mine = {"bad": [asdict(bad) for bad in self._unlisted.values()], "changed": self._changed}
        found = [json.loads(text) for text in self._comm.gather_text(json.dumps(mine))]
        entries = [BadSample(**entry) for each in found for entry in each["bad"]]
        new = {bad.index: bad for bad in sorted(entries, key=lambda bad: bad.index)}
        self._listed.update(new)
        self._unlisted.clear()
        self._changed = []
        return list(new.values()), sorted({name for each in found for name in each["changed"]})


def _entry(line: bytes) -> dict[str, Any] | None:
    """The fields of a BadSample in a line of the list; None if it is damaged."""
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return None
    whole = isinstance(entry, dict) and entry.keys() == KINDS.keys()
    if not whole or any(type(entry[name]) is not kind for name, kind in KINDS.items()):
        return None
    return entry if 0 <= entry["index"] < 2**62 and 0 <= entry["epoch"] < 2**62 else None


def _changed_note(names: list[str]) -> str:
    shown = ", ".join(name if name.isprintable() else repr(name)[1:-1] for name in names[:NAMED])
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return f"warning: changed while the run reads them (size or date): {shown}{more}"


def _note(new: list[BadSample], path: Path) -> str:
    names = ", ".join(f"{bad.name} ({bad.reason}: {bad.detail})" for bad in new[:NAMED])
    more = f" and {len(new) - NAMED} more" if len(new) > NAMED else ""
    return f"warning: {len(new)} bad images masked, listed in {path}: {names}{more}"
