"""The images that earlier attempts of a run have masked: tried again when it goes on.

A masked image comes back only here, never within an attempt: so which images a step uses depends on the
list at the start of the attempt, which all ranks share, and on nothing else. The order of the images is
that of all epochs; one that comes back has weight 1 in its place from the next step on.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict

from hvdtrain import activity
from hvdtrain.comm.agreement import together
from hvdtrain.errors import ResourceError
from hvdtrain.files import move_aside
from hvdtrain.run.dataset import take_sizes
from hvdtrain.run.parts import Run
from hvdtrain.telemetry.bad_list import read_list, write_list
from hvdtrain.telemetry.reports import Note
from pipelines.bad import BadSample

NAMED = 5


def restore_masked(run: Run) -> None:
    """Mask what earlier attempts have masked, but for images that were repaired since.

    Only rank 0 needs to see the list; each rank looks at a part of the images. Every rank must call.
    """
    comm = run.comm
    listed = [asdict(bad) for bad in _read(run)] if comm.rank == 0 else []
    masked = [BadSample(**entry) for entry in json.loads(comm.gather_text(json.dumps(listed))[0])]
    if not masked or run.cfg.data.on_bad != "mask":
        return
    activity.enter("looking at images that were masked", -(-len(masked) // comm.size), "images")
    mine: list[int] = []
    with together(comm):
        mine = run.loaders.repaired(masked[comm.rank :: comm.size], activity.beat)
    good = {i for text in comm.gather_text(json.dumps(mine)) for i in json.loads(text)}
    left = [bad for bad in masked if bad.index not in good]
    run.bad.restore(left)
    run.loaders.mask(left)
    names = [bad.name for bad in masked if bad.index in good]
    run.sinks.write(Note(_text(names, len(masked))))
    if comm.rank == 0 and good:
        _write(run, left, sorted(good))


def _read(run: Run) -> list[BadSample]:
    """The list on rank 0. A damaged one, or that of other images, is kept under another name."""
    path = run.paths.bad_samples
    if run.data.changed and path.exists():  # the list has numbers, which other images have now
        _set_aside(run, "is of the images before, so all are tried again")
        return []
    masked, fault = read_list(path, run.loaders.sources["train"])
    if fault:
        _set_aside(run, f"{fault}; what is lost with them is masked again where it is met")
        _write(run, masked, [])
    return masked


def _set_aside(run: Run, fault: str) -> None:
    path = run.paths.bad_samples
    try:
        kept = f"it is kept as {move_aside(path).name}"
    except OSError as error:
        kept = f"it cannot be renamed ({error.strerror})"
    run.sinks.write(Note(f"warning: {path}: {fault}; {kept}"))


def _write(run: Run, masked: Sequence[BadSample], good: Sequence[int]) -> None:
    """Without the repaired images, once their sizes are recorded: else the next attempt would take them
    for other images."""
    try:
        if good:
            take_sizes(run.paths.dataset, run.loaders.sources["train"], good)
        write_list(run.paths.bad_samples, masked)
    except (OSError, ResourceError) as error:
        run.sinks.write(Note(f"warning: the list of bad images is not brought up to date: {error}"))


def _text(names: Sequence[str], of: int) -> str:
    text = f"{len(names)} of {of} images masked before can be read again"
    if not names:
        return text
    shown = ", ".join(n if n.isprintable() else repr(n)[1:-1] for n in names[:NAMED])
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return f"{text} and are used from here on: {shown}{more}"
