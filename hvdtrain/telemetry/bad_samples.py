"""The bad training images of a run: counted, agreed over the ranks, named once each."""

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
"""Bad images named in one line of the log; the list in the run directory has them all."""


class BadSamples:
    """What one rank knows of the run's bad images; rank 0 keeps the list `path`.

    Their number travels in the meter's vector. Only in an interval in which some rank met one
    that is not on the list yet do the ranks exchange names.
    """

    def __init__(self, data: Data, comm: Comm, path: Path) -> None:
        self._limit = data.max_bad_ratio
        self._comm = comm
        self._path = path
        self._listed: dict[int, BadSample] = {}
        self._unlisted: dict[int, BadSample] = {}
        self._masked = 0
        self._masked_in_epoch = 0

    def read(self) -> list[dict[str, Any]]:
        """What rank 0 has on its list from an earlier part of the run."""
        if self._comm.rank or not self._path.exists():
            return []
        return [json.loads(line) for line in self._path.read_text(encoding="utf-8").splitlines()]

    def restore(self, entries: list[dict[str, Any]]) -> list[BadSample]:
        """Take up what rank 0 has `read`, on every rank."""
        self._listed = {entry["index"]: BadSample(**entry) for entry in entries}
        return list(self._listed.values())

    def start_epoch(self) -> None:
        """Begin to count towards `max_bad_ratio` anew."""
        self._masked_in_epoch = 0

    def add(self, found: Iterable[BadSample], sinks: Sinks) -> None:
        """The images masked in one batch of this rank."""
        for bad in found:
            self._masked += 1
            if bad.index not in self._listed:
                self._unlisted[bad.index] = bad
            sinks.observe_bad(bad.reason)

    def counts(self) -> BadCounts:
        """Of this rank, since `settle`."""
        return BadCounts(self._masked, len(self._unlisted))

    def settle(self, counts: BadCounts, num_samples: int, sinks: Sinks) -> list[BadSample]:
        """Name the new ones; every rank calls with the sums of `counts` over all ranks.

        Returns the new ones of all ranks. Raises DataError on every rank once more than
        `max_bad_ratio` of the `num_samples` images of this epoch are masked.
        """
        self._masked = 0
        self._masked_in_epoch += counts.masked
        found = self._exchange() if counts.unlisted else []
        if found:
            sinks.write(Note(_note(found, self._path)))
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
        return found

    def _exchange(self) -> list[BadSample]:
        mine = json.dumps([asdict(bad) for bad in self._unlisted.values()])
        texts = self._comm.gather_text(mine)
        entries = [BadSample(**entry) for text in texts for entry in json.loads(text)]
        found = {bad.index: bad for bad in sorted(entries, key=lambda bad: bad.index)}
        self._listed.update(found)
        self._unlisted.clear()
        return list(found.values())


def _note(found: list[BadSample], path: Path) -> str:
    names = ", ".join(f"{bad.name} ({bad.reason}: {bad.detail})" for bad in found[:NAMED])
    more = f" and {len(found) - NAMED} more" if len(found) > NAMED else ""
    return f"warning: {len(found)} bad images masked, listed in {path}: {names}{more}"
