"""All parts of a run on one rank."""

from __future__ import annotations

from dataclasses import dataclass, field

from hvdtrain.comm.ranks import Comm
from hvdtrain.config.schema import Config
from hvdtrain.engine.step import State
from hvdtrain.paths import RunPaths
from hvdtrain.plan.epochs import Plan
from hvdtrain.run.changes import Change
from hvdtrain.run.dataset import DatasetWriter, RunData
from hvdtrain.run.guard.divergence import Comparison
from hvdtrain.run.guard.numbers import Skips
from hvdtrain.run.guard.spikes import Spikes
from hvdtrain.run.guard.trail import Trail
from hvdtrain.run.lock import RunLock
from hvdtrain.run.notices import Notices
from hvdtrain.run.other_ranks import Batch
from hvdtrain.run.snapshots import Snapshots
from hvdtrain.telemetry.bad_samples import BadSamples
from hvdtrain.telemetry.other_work import OtherWork
from hvdtrain.telemetry.reports import Note
from hvdtrain.telemetry.sinks import Sinks
from pipelines.loader import Loaders


@dataclass
class Run:
    """All parts of a run on one rank."""

    cfg: Config
    comm: Comm
    paths: RunPaths
    plan: Plan
    loaders: Loaders
    sinks: Sinks
    state: State
    bad: BadSamples
    hosts: list[str]
    """The host of every rank."""
    data: RunData
    writer: DatasetWriter
    snapshots: Snapshots
    changes: list[Change]
    """Settings that differ from those of the attempt before."""
    given: Batch
    """The batch that the user gave, where `cfg` has another that keeps the global batch."""
    lock: RunLock | None = None
    """On rank 0: no other job uses the directory."""
    begun: bool = False
    """Whether this attempt has had its first batch; until then the pipelines are filling."""
    skips: Skips = field(default_factory=Skips)
    """The updates that the loss scale has skipped in this attempt."""
    other_work: OtherWork | None = None
    """Other programs on the cores of this run."""
    trail: Trail = field(default_factory=Trail)
    rollbacks: int = 0
    """Made in this attempt, the same on all ranks."""
    notices: Notices = field(default_factory=lambda: Notices([], lambda _text: None))
    """Of stops that are known in advance."""
    spikes: Spikes = field(init=False)
    comparison: Comparison = field(init=False)
    """Of the ranks' weights with each other."""

    def __post_init__(self) -> None:
        self.spikes = Spikes(self.cfg.train.loss_spike)
        self.comparison = Comparison(self.cfg.train, self.state, self.hosts, self.sinks, self.paths)

    def close(self) -> None:
        """Stop loaders and sinks, when a checkpoint that was begun is complete."""
        self.notices.close()
        self.snapshots.finish()
        self.writer.close()
        if self.writer.fault:
            self.sinks.write(Note(f"warning: {self.writer.fault}"))
        self.loaders.close()
        self.bad.close(self.loaders.take_retried(), self.sinks)
        self.sinks.close()
        if self.lock is not None:
            self.lock.release()
