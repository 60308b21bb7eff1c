"""What differs between the settings of a run and those it is resumed with.

Each field of the config is of one kind (`hvdtrain.config.fields.Kind`). Beyond single fields, the
global batch and the place in the schedule belong to what a run is: ranks, batch and accumulation may
change if the global batch stays, and the number of epochs if nothing goes back.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from hvdtrain.checkpoint_files import list_checkpoints, read_meta
from hvdtrain.config.fields import Kind
from hvdtrain.config.kinds import plain, settings
from hvdtrain.config.load import load_config
from hvdtrain.config.schema import Config
from hvdtrain.errors import CheckpointError, ConfigError
from hvdtrain.paths import RunPaths
from hvdtrain.plan.epochs import Position, epoch_of
from hvdtrain.report.events import read_lines, read_mapping, whole
from hvdtrain.run.other_ranks import Batch, shared_anew

CHOSEN = ("none", "fp16", "auto")
"""What `comm.compression: auto` may stand for."""


class Change(NamedTuple):
    """One difference; values as text."""

    setting: str
    kind: Kind
    before: str
    after: str
    hint: str = ""
    """How to avoid it."""

    @property
    def text(self) -> str:
        """Without its kind."""
        return f"{self.setting} {self.before} → {self.after}"

    def as_dict(self) -> dict[str, str]:
        """As the log of the run keeps it."""
        return {key: value for key, value in self._asdict().items() if key != "hint"}


@dataclass(frozen=True)
class Begun:
    """What a run directory says of its run."""

    cfg: Config
    """Of the last attempt."""
    world_size: int | None
    """Of the last attempt; None if it is not known."""
    position: Position
    """That of the newest checkpoint that can be read."""
    images: int | None
    """Training images of that checkpoint; None if it is not known."""
    given: Batch | None = None
    """The batch that the last attempt was given; None if it is not known."""

    def batch_for(self, cfg: Config, ranks: int) -> Batch | None:
        """What keeps the global batch if `cfg` goes on with this run on `ranks` ranks; None: what `cfg` says.

        Only if it says what the last attempt was given, or had: what a user changes is never replaced.
        Raises UnsharedError if so many ranks cannot share the global batch.
        """
        given, had = Batch.of(cfg), Batch.of(self.cfg)
        wanted = had.total(self.world_size or ranks)[: len(given.per_worker)]
        same = given.total(ranks)[: len(wanted)] == wanted
        if same or cfg.train.on_other_ranks == "as_given":
            return None
        return shared_anew(given, wanted, ranks) if given in (self.given, had) else None


def read_begun(paths: RunPaths) -> Begun:
    """What the run of `paths` is. Raises ConfigError if its config cannot be read."""
    cfg = load_config(paths.config)
    meta: dict[str, Any] = {}
    for path in list_checkpoints(paths.checkpoints):
        try:
            meta = read_meta(path)
        except CheckpointError:
            continue  # the run says so when it loads one
        break
    environment = read_mapping(paths.environment)
    world_size = whole(environment, "world_size")
    return Begun(
        cfg,
        world_size or meta.get("world_size"),
        Position(**meta.get("position", {})),
        meta.get("labels", {}).get("train_images"),
        Batch.read(environment.get("given")),
    )


def compare(begun: Begun, cfg: Config, world_size: int) -> list[Change]:
    """All changes that are not free, those of the identity first.

    Raises ConfigError if the run has come further than the new plan goes.
    """
    _require_room(begun.position, cfg)
    found = [*_fields(begun.cfg, cfg)]
    before = begun.world_size or world_size
    if before != world_size:
        found.append(Change("ranks", "plan", str(before), str(world_size)))
    found += _batch(begun.cfg, before, cfg, world_size)
    if not any(change.kind == "identity" for change in found):
        found += _schedule(begun, before, cfg, world_size)
    return sorted(found, key=lambda change: change.kind != "identity")


def chosen_compression(paths: RunPaths, given: Config, chosen: Config) -> list[Change]:
    """The change of `comm.compression` where the run is `given` auto and now has `chosen` another than
    before; for rank 0 of a run that goes on, before its config is written anew."""
    before, now = load_config(paths.config).comm.compression, chosen.comm.compression
    if given.comm.compression != "auto" or before not in CHOSEN or before == now:
        return []
    return [Change("comm.compression", "plan", before, now)]


def identity(changes: list[Change]) -> list[Change]:
    """Those that make it another run."""
    return [change for change in changes if change.kind == "identity"]


def refusal(root: Path, changes: list[Change]) -> ConfigError:
    """The error for changes of the identity."""
    texts = "; ".join(change.text + change.hint for change in changes)
    return ConfigError(
        f"{root}: not the settings that this run began with: {texts}: set them back, or go on with "
        "these by --accept-changes"
    )


def notes_of(changes: list[Change]) -> list[str]:
    """What to tell of changes with which a run goes on."""
    notes = []
    if insisted := [change.text for change in identity(changes)]:
        notes.append(
            f"warning: other settings than before, by --accept-changes: {'; '.join(insisted)}"
        )
    if planned := [change.text for change in changes if change.kind != "identity"]:
        notes.append(f"changed since the last attempt: {'; '.join(planned)}")
    return notes


def accepted_before(paths: RunPaths) -> list[str]:
    """The changes of settings that --accept-changes has let pass, as the log of the run has them."""
    if not paths.events.exists():
        return []
    texts = []
    for event in read_lines(paths.events)[0]:
        changes = event.get("changes") if event["kind"] == "start" else None
        texts += [
            f"{change.get('setting')} {change.get('before')} → {change.get('after')}"
            for change in (changes if isinstance(changes, list) else [])
            if isinstance(change, dict) and change.get("kind") == "identity"
        ]
    return texts


def _require_room(position: Position, cfg: Config) -> None:
    total = sum(phase.epochs for phase in cfg.phases)
    if position > Position(total):
        raise ConfigError(
            f"phases: {total} epochs in all, of a run that is at epoch {position.epoch}, image "
            f"{position.sample:,}: set more epochs"
        )


def _fields(before: Config, after: Config) -> Iterator[Change]:
    """The fields of both; further phases are one change."""
    known = {setting.key: setting.value for setting in settings(before)}
    for key, kind, value in settings(after):
        if key == "comm.compression" and value == "auto" and known[key] in CHOSEN:
            continue  # `chosen_compression` tells what it becomes
        if kind != "machine" and key in known and known[key] != value:
            yield Change(key, kind, plain(known[key]), plain(value))
    if len(before.phases) != len(after.phases):
        counts = (str(len(before.phases)), str(len(after.phases)))
        yield Change("number of phases", "identity", *counts)


def _batch(before: Config, ranks: int, after: Config, ranks_now: int) -> Iterator[Change]:
    """The first phase of another global batch, which is allowed on other ranks if the config says so."""
    allowed = ranks != ranks_now and after.train.on_other_ranks == "as_given"
    kind: Kind = "plan" if allowed else "identity"
    for index, (old, new) in enumerate(zip(before.phases, after.phases, strict=False)):
        was = old.batch_per_worker * before.train.accumulate * ranks
        now = new.batch_per_worker * after.train.accumulate * ranks_now
        if was != now:
            accumulate, rest = divmod(was, new.batch_per_worker * ranks_now)
            hint = "" if rest else f" (train.accumulate={accumulate} keeps it)"
            name = f"global batch of phases.{index}"
            yield Change(name, kind, str(was), str(now), "" if allowed else hint)
            return


def _schedule(begun: Begun, ranks: int, cfg: Config, ranks_now: int) -> Iterator[Change]:
    """What another number of epochs changes where the run goes on."""
    at = begun.position
    images = begun.images or 1
    t = at.epoch + min(at.sample / images, 1.0)
    new = epoch_of(cfg, ranks_now, images, at.epoch)
    old = epoch_of(begun.cfg, ranks, images, at.epoch)
    # At the batch of now, whose change is told by itself.
    size = {"batch_per_worker": new.phase.batch_per_worker}
    phase = old.phase.model_copy(update=size)
    old = replace(old, phase=phase, accumulate=new.accumulate, world_size=ranks_now)
    where = f"(epoch {t:.4g})"
    if old.phase_index != new.phase_index:
        back = new.phase_index < old.phase_index
        kind: Kind = "identity" if back else "plan"
        yield Change(f"phase {where}", kind, str(old.phase_index), str(new.phase_index))
        return
    sizes = [epoch.phase.image_size_at(at.epoch - epoch.first_of_phase) for epoch in (old, new)]
    if sizes[0] != sizes[1]:
        kind = "identity" if _back(sizes, new.phase.image_size_at(0)) else "plan"
        yield Change(f"image size {where}", kind, *map(str, sizes))
    rates = old.lr_at(t), new.lr_at(t)
    if not math.isclose(*rates, rel_tol=1e-6, abs_tol=1e-12):
        kind = "identity" if rates[1] > rates[0] else "plan"
        yield Change(f"learning rate {where}", kind, f"{rates[0]:.4g}", f"{rates[1]:.4g}")


def _back(sizes: list[int], first: int) -> bool:
    """Whether images of a phase that began at `first` go back to a size that they have had."""
    return abs(sizes[1] - first) < abs(sizes[0] - first)
