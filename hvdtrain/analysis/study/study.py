"""A study from beginning to end: its folder, its members, and what is collected of them."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from hvdtrain import activity
from hvdtrain.analysis.study.asked import Asked, Member, as_json, begun, members, require_fit
from hvdtrain.analysis.study.cost import Cost, TimeLeft, costs, member_config, plan_of
from hvdtrain.analysis.study.folder import Folder
from hvdtrain.analysis.study.member_results import Result, result_of
from hvdtrain.analysis.study.prediction import seconds_per_epoch
from hvdtrain.analysis.study.processes import Processes, Progress
from hvdtrain.analysis.study.surfaces import Around, Surfaces, Task
from hvdtrain.analysis.study.table import Group, as_csv, groups_of
from hvdtrain.analysis.study.table import as_json as groups_json
from hvdtrain.analysis.study.trainer import Outcome, Trainer
from hvdtrain.checkpoint_files import list_checkpoints, read_meta
from hvdtrain.config.schema import Config
from hvdtrain.errors import CheckpointError, ConfigError, HvdtrainError
from hvdtrain.files import write_atomically
from hvdtrain.paths import RunPaths
from hvdtrain.plan.images import num_images
from hvdtrain.plan.schedules import lr_scale
from hvdtrain.report.text import duration
from hvdtrain.run.lock import RunLock
from hvdtrain.scaling.ends import Ends

Say = Callable[[str], None]


@dataclass(frozen=True)
class Study:
    """A study that can be trained; nothing is written before `begin`."""

    folder: Folder
    asked: Asked
    cfg: Config
    members: list[Member]
    images: int
    """To train on."""

    @classmethod
    def of(cls, root: Path, asked: Asked, cfg: Config) -> Study:
        """Check what was asked, also against the study that is in `root` already. Raises ConfigError,
        DataError, ResourceError."""
        require_fit(cfg)
        folder = Folder(root)
        asked = begun(folder, asked, cfg)
        images = num_images(cfg)
        if images is None:
            raise ConfigError("data.train: no images: a study needs them")
        found = members(asked, cfg)
        for member in found:
            plan_of(cfg, member, images)
        return cls(folder, asked, cfg, found, images)

    def begin(self) -> RunLock:
        """Write what was asked; the lock keeps other processes out. Raises ResourceError."""
        self.folder.write(asked=as_json(self.asked, self.cfg))
        lock = RunLock(self.folder.root)
        config = yaml.safe_dump(self.cfg.model_dump(), sort_keys=False, allow_unicode=True)
        write_atomically(self.folder.config, config.encode())
        return lock

    def trainer(
        self, jobs: int, say: Say, hours: float | None = None, gpus: tuple[str, ...] = ()
    ) -> Trainer:
        """What trains the members; after `hours` it stops as by a signal."""
        end = None if hours is None else time.monotonic() + 3600 * hours
        left = TimeLeft(self.folder, self.members, jobs)
        began: dict[str, float] = {}
        progress = Progress()

        def watch(running: Sequence[Member], waiting: int) -> None:
            now = time.monotonic()
            for member in running:
                began.setdefault(member.name, now)
            names = ", ".join(member.name for member in running)
            seconds = {member.name: now - began[member.name] for member in running}
            later = self.members[len(self.members) - waiting :] if waiting else []
            known = left.estimate(seconds, later)
            text = "time left unknown" if known is None else f"{duration(round(known))} left"
            progress.enter(f"training {names or 'nothing'}, {waiting} waiting, {text}")

        def over() -> bool:
            return end is not None and time.monotonic() >= end

        return Trainer(self.folder, Processes(jobs, gpus=gpus, until=over), say, watch)

    def costs(self, trainer: Trainer) -> list[Cost]:
        """Updates and time of every member."""
        return costs(self.cfg, self.members, self.images, trainer)

    def results(self, trainer: Trainer) -> list[Result]:
        """Of the members that have begun."""
        diverged = self.folder.read().get("diverged", {})
        found = []
        for member in self.members:
            root, done = self.folder.run(member.name), trainer.finished(member)
            if (root / "events.jsonl").is_file():
                bad = member.name in diverged
                found.append(result_of(member, root, finished=done, diverged=bad))
        return found

    def tasks(self, surfaces: Surfaces, trainer: Trainer) -> list[Task]:
        """What is to be measured around the weights of the members that are finished."""
        diverged = self.folder.read().get("diverged", {})
        return surfaces.tasks(
            [m for m in self.members if trainer.finished(m) and m.name not in diverged], trainer.say
        )

    def collect(self, trainer: Trainer, say: Say, around: Around | None = None) -> list[Group]:
        """Write table, pictures and report of what there is; returns the groups."""
        around = around or Around()
        results = [
            replace(
                result,
                sharpness=around.sharpness.get(result.name, {}),
                noise_at_best=around.noise.get(result.name),
            )
            for result in self.results(trainer)
        ]
        if not results:
            return []
        if other := self._other_images([result.name for result in results]):
            say(f"warning: {other}")
        groups = groups_of(results)
        pairs = self._gradients(trainer, say) if self.asked.kind == "batch-size" else {}
        numbers = [{**r.row(), "layer_distances": r.layer_distances} for r in results]
        self.folder.write(results=numbers, groups=groups_json(groups), gradients=pairs)
        write_atomically(self.folder.table, as_csv(results).encode())
        from hvdtrain.analysis.study.grid_page import best_rates, grid_section, parallel_section
        from hvdtrain.analysis.study.page import about, sections_of
        from hvdtrain.report.study import write_study

        activity.enter("drawing the report")
        title, sections = f"{self.cfg.name}: {self.asked.kind}", []
        shown = best_rates(groups) if self.asked.kind == "lr-batch" else groups
        if self.asked.kind == "lr-batch":
            first = self.cfg.lr.base * lr_scale(self.cfg.lr, self.asked.batches[0])
            epochs = sum(phase.epochs for phase in self.cfg.phases)
            sections = [grid_section(groups, first, epochs)]
        elif self.asked.kind == "parallel":
            sections = [parallel_section(groups, self._predicted(say))]
        sections += sections_of(shown, pairs, around)
        write_study(self.folder.page, self.folder.pictures, title, about(groups), sections)
        return groups

    def _other_images(self, names: Sequence[str]) -> str:
        """Which members have seen other images than the first; empty if none, or if each seed holds out its
        own."""
        if self.cfg.data.val_share is not None:
            return ""
        seen = {name: images_of(self.folder.run(name)) for name in names}
        known = {name: images for name, images in seen.items() if images != (None, None)}
        first = next(iter(known.values()), None)
        odd = [name for name, images in known.items() if images != first]
        if not odd:
            return ""
        return (
            f"{', '.join(odd)}: trained or evaluated on other images than {next(iter(known))}: do not "
            "compare them"
        )

    def _predicted(self, say: Say) -> dict[str, Ends[float]]:
        """Seconds per epoch of members of several ranks, by the speed of one worker that each measured."""
        found: dict[str, Ends[float]] = {}
        for member in self.members:
            run, cfg = self.folder.run(member.name), member_config(self.cfg, member)
            if member.ranks == 1 or not RunPaths(run).calibration.is_file():
                continue
            try:
                found[member.name] = seconds_per_epoch(cfg, run, member.ranks, self.images)
            except HvdtrainError as error:
                say(f"{member.name}: no prediction: {error}")
        return found

    def _gradients(self, trainer: Trainer, say: Say) -> dict[str, Any]:
        """Of the finished members of the first seed, by name; each is measured once."""
        from hvdtrain.analysis.study.gradients import best_checkpoint, measure, start_checkpoint

        known: dict[str, Any] = self.folder.read().get("gradients", {})
        for member in self.members:
            run = self.folder.run(member.name)
            first = member.seed == self.cfg.seed and member.ranks == self.asked.ranks[0]
            if member.name in known or not first or not trainer.finished(member):
                continue
            try:
                paths = {"start": start_checkpoint(run), "best": best_checkpoint(run)}
                found = measure(member_config(self.cfg, member, ranks=1), paths)
            except HvdtrainError as error:
                say(f"{member.name}: gradients not measured: {error}")
                continue
            known[member.name] = {name: pairs.as_dict() for name, pairs in found.items()}
            self.folder.write(gradients=known)
        return {m.name: known[m.name] for m in self.members if m.name in known}


def images_of(run: Path) -> tuple[str | None, str | None]:
    """Fingerprints of the training and validation images in the newest checkpoint; None if not known."""
    for path in list_checkpoints(RunPaths(run).checkpoints)[:1]:
        with contextlib.suppress(CheckpointError):
            data = read_meta(path).get("data", {})
            train, val = ((data.get(kind) or {}).get("fingerprint") for kind in ("train", "val"))
            return train, val
    return None, None


def summary(outcome: Outcome, root: Path, unmeasured: int = 0) -> str:
    """The last line of a command; `unmeasured`: measurements that failed."""
    parts = [f"{len(outcome.finished)} members trained"]
    if outcome.diverged:
        parts.append(f"{len(outcome.diverged)} diverged")
    if outcome.failed:
        parts.append(f"{len(outcome.failed)} failed: the same command tries them again")
    if unmeasured:
        parts.append(f"{unmeasured} measurements failed: the same command tries them again")
    return f"{', '.join(parts)}; study in {root}"
