"""The bad training images of a run: each rank counts its own, and rank 0 lists all of them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

from hvdtrain.comm.ranks import Comm
from hvdtrain.config.data import Data
from hvdtrain.errors import DataError, ResourceError
from hvdtrain.telemetry.bad_list import write_list
from hvdtrain.telemetry.meter import BadCounts
from hvdtrain.telemetry.reports import Note
from hvdtrain.telemetry.sinks import Sinks
from pipelines.bad import BadSample
from pipelines.sources.retries import Retried

NAMED = 5
"""Most bad images in one line of the log; the list in the run directory has all of them."""


class BadSamples:
    """The run's bad images, as one rank knows them; rank 0 writes the list to `path`.

    The meter sums the counts over ranks. The ranks exchange names only after an interval in which
    some rank met an image that is not on the list yet, or tried a read again for the first time.
    """

    def __init__(self, data: Data, comm: Comm, path: Path) -> None:
        self._limit = data.max_bad_ratio
        self._comm = comm
        self.path = path
        self._listed: dict[int, BadSample] = {}
        self._unlisted: dict[int, BadSample] = {}
        self._changed: list[str] = []
        self._retried = Retried()
        self._retries_told = False
        """Whether some rank's retries were reported: the same on all ranks."""
        self._write_failed = False
        self._masked = 0
        self._masked_in_epoch = 0

    def restore(self, masked: Iterable[BadSample]) -> None:
        """Take over what earlier attempts have masked; the same on every rank."""
        self._listed = {bad.index: bad for bad in masked}

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

    def add_retried(self, retried: Retried, sinks: Sinks) -> None:
        """Count the reads that this rank has tried again."""
        if retried.count:
            self._retried.count += retried.count
            self._retried.first += retried.first
            sinks.observe_retries(retried.count)

    def counts(self) -> BadCounts:
        """The counts of this rank since the last `settle`."""
        news = len(self._unlisted) + len(self._changed)
        news += bool(self._retried.count) and not self._retries_told
        return BadCounts(self._masked, news, self._retried.count)

    def settle(self, counts: BadCounts, num_samples: int, sinks: Sinks) -> list[BadSample]:
        """List and report the new bad images of all ranks, and return them.

        Every rank calls with the sums of `counts` over all ranks. Raises DataError on every rank
        when more than `max_bad_ratio` of the `num_samples` images of this epoch are masked.
        """
        self._masked = 0
        self._masked_in_epoch += counts.masked
        new = self._exchange(counts, sinks) if counts.unlisted else []
        self._retried = Retried()
        if new:
            sinks.write(Note(_note(new, self.path)))
            self._write(sinks)
        if self._masked_in_epoch > self._limit * num_samples:
            fault = DataError(
                f"data.max_bad_ratio: {self._masked_in_epoch} bad images so far in this epoch, "
                f"more than {self._limit:g} of {num_samples:,}; all are listed in {self.path}"
            )
            fault.everywhere = True
            raise fault
        return new

    def close(self, retried: Retried, sinks: Sinks) -> None:
        """At the end of a run: report what this rank has tried again since the last `settle`."""
        self.add_retried(retried, sinks)
        if self._retried.count and not self._retries_told:
            sinks.note(_retried_note(self._retried.count, self._retried.first))

    def _exchange(self, counts: BadCounts, sinks: Sinks) -> list[BadSample]:
        """The new bad images of all ranks; reports changed files and the first retries."""
        mine = {
            "bad": [asdict(bad) for bad in self._unlisted.values()],
            "changed": self._changed,
            "retried": self._retried.first,
        }
        found = [json.loads(text) for text in self._comm.gather_text(json.dumps(mine))]
        entries = [BadSample(**entry) for each in found for entry in each["bad"]]
        new = {bad.index: bad for bad in sorted(entries, key=lambda bad: bad.index)}
        self._listed.update(new)
        self._unlisted.clear()
        self._changed = []
        if changed := sorted({name for each in found for name in each["changed"]}):
            sinks.write(Note(_changed_note(changed)))
        if counts.retried and not self._retries_told:
            names = [name for each in found for name in each["retried"]]
            sinks.write(Note(_retried_note(counts.retried, names)))
            self._retries_told = True
        return list(new.values())

    def _write(self, sinks: Sinks) -> None:
        """Write the list on rank 0. A disk that refuses does not end the run: one note tells."""
        if self._comm.rank:
            return
        try:
            write_list(self.path, self._listed.values())
        except ResourceError as error:
            if not self._write_failed:
                sinks.write(Note(f"warning: {error}; training goes on"))
            self._write_failed = True


def _changed_note(names: list[str]) -> str:
    shown = ", ".join(map(_printable, names[:NAMED]))
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return f"warning: changed while the run reads them (size or date): {shown}{more}"


def _retried_note(count: int, first: list[str]) -> str:
    shown = ", ".join(dict.fromkeys(_printable(name) for name in first[:NAMED]))
    return (
        f"warning: reads failed and were tried again ({count} so far): {shown}; further ones are only "
        "counted, in read_retries of events.jsonl"
    )


def _printable(name: str) -> str:
    return name if name.isprintable() else repr(name)[1:-1]


def _note(new: list[BadSample], path: Path) -> str:
    names = ", ".join(f"{bad.name} ({bad.reason}: {bad.detail})" for bad in new[:NAMED])
    more = f" and {len(new) - NAMED} more" if len(new) > NAMED else ""
    return f"warning: {len(new)} bad images masked, listed in {path}: {names}{more}"
