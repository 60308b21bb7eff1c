"""The attempts of a run: what the ones before this one took, and the report that begins a new one."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace

from hvdtrain.comm.agreement import together
from hvdtrain.report.events import restarts
from hvdtrain.report.run import time_before
from hvdtrain.run.prepare import Run
from hvdtrain.telemetry.reports import Start


@dataclass(frozen=True)
class Earlier:
    """The attempts before this one, the same on all ranks."""

    attempts: int
    wall_seconds: float
    """Their wall time together, without the pauses between them."""
    train_seconds: float
    """Time of the training steps that they have led to: those up to the checkpoint."""


def start_attempt(run: Run, setup_s: float) -> Earlier:
    """Report the start of an attempt, from which the report page counts its time and cost."""
    found: tuple[int, float] = (0, 0.0)
    restarted: tuple[int, int] = (0, 0)
    with together(run.comm):
        if run.comm.rank == 0:
            found, restarted = time_before(run.paths.events), restarts(run.paths.events)
    attempts, wall_s = json.loads(run.comm.gather_text(json.dumps(found))[0])
    changes = [change.as_dict() for change in run.changes]
    start = Start(run.comm.size, len(set(run.hosts)), setup_s, *restarted)
    run.sinks.write(replace(start, changes=changes))
    return Earlier(attempts, wall_s, run.state.progress.train_seconds)
