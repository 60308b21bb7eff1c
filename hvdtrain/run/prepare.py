"""A run on one rank: its directory, its metrics endpoint, and the state it starts from."""

from __future__ import annotations

import contextlib
import json
import platform
import socket
import sys
from functools import partial
from pathlib import Path

import torch
import yaml

from hvdtrain import activity
from hvdtrain.comm.agreement import together
from hvdtrain.comm.ranks import Comm
from hvdtrain.config.schema import Config
from hvdtrain.engine.build import checkpoint_labels, set_up
from hvdtrain.engine.checkpoint import sweep
from hvdtrain.engine.compression.settings import compression_notes
from hvdtrain.files import write_atomically
from hvdtrain.launch.placement import RankPlace, actual_placement, placement_text
from hvdtrain.plan.recipe_check import recipe_warnings
from hvdtrain.preflight.finding import raise_faults
from hvdtrain.preflight.judge import judge, measured
from hvdtrain.preflight.survey import survey
from hvdtrain.run.changes import Change, chosen_compression, notes_of
from hvdtrain.run.checkpoints import to_keep
from hvdtrain.run.dataset import (
    DatasetWriter,
    check_data,
    classes_of,
    recorded_data,
)
from hvdtrain.run.directory import Directory, discarded_if_unused, run_directory
from hvdtrain.run.exchange_tuning import tune
from hvdtrain.run.guard.watchdog import ask_about_images, leave_stacks_in
from hvdtrain.run.masked import restore_masked
from hvdtrain.run.mirror import Mirror, adopt
from hvdtrain.run.notices import watch
from hvdtrain.run.other_ranks import Batch
from hvdtrain.run.parts import Run
from hvdtrain.run.patience import ended, require_validation
from hvdtrain.run.restore import restore
from hvdtrain.run.snapshots import Cadence, Snapshots
from hvdtrain.run.weights import keep_start
from hvdtrain.telemetry.bad_samples import BadSamples
from hvdtrain.telemetry.discovery import publish
from hvdtrain.telemetry.other_work import watch_for
from hvdtrain.telemetry.reports import Note
from hvdtrain.telemetry.sinks import Sinks
from hvdtrain.versions import installed_versions
from pipelines.sources.classes import describe_classes
from pipelines.sources.left_out import left_out_of

__all__ = ["Run", "prepare"]

ENGINES = {"horovod": "Horovod", "torch": "torch.distributed"}
SLOW_FP16 = "train.precision fp16 on a CPU takes up to 100 times as long as fp32: set it to fp32, bf16 or auto"


def prepare(
    cfg: Config,
    comm: Comm,
    resume: str,
    run_dir: Path | None,
    accept_changes: bool = False,
    batch_ranks: int | None = None,
) -> Run:
    """Choose the run directory, check the ranks, build all parts, and restore a resumed run.

    `accept_changes`: go on with other settings or images than the run began with. `batch_ranks`: see
    `train`. An error on any rank is raised on all of them.
    """
    directory = run_directory(cfg, comm, resume, run_dir, accept_changes, batch_ranks)
    with discarded_if_unused(directory):
        return _prepare(cfg, comm, directory, accept_changes)


def _prepare(cfg: Config, comm: Comm, directory: Directory, accept_changes: bool) -> Run:
    paths, given = directory.paths, Batch.of(cfg)
    cfg = directory.batch.put_in(cfg) if directory.batch else cfg
    leave_stacks_in(paths.stalls, comm)
    activity.enter("checking hosts and datasets")
    facts = survey(cfg, comm, paths.root) if cfg.comm.preflight else []
    findings = judge(facts) if facts else []
    raise_faults(findings)
    activity.enter("measuring the gradient exchange")
    tuning = tune(cfg, comm, paths.tuning)
    changes = [*directory.changes, *_chosen(directory, cfg, tuning.config, comm)]
    cfg = tuning.config
    recorded = recorded_data(paths, comm)
    parts = set_up(cfg, comm, classes_of(recorded))
    ask_about_images(parts.loaders.doing)
    data = check_data(cfg, comm, parts.loaders, paths, recorded, accept_changes)
    with together(comm):
        require_validation(cfg, parts.loaders.num_val)
        if comm.rank == 0:
            paths.create()
            sweep(paths.checkpoints)
            adopt(paths)
    own = (socket.gethostname(), torch.get_num_threads(), torch.cuda.device_count())
    ranks = [RankPlace(*json.loads(text)) for text in comm.gather_text(json.dumps(own))]
    hosts = [rank.host for rank in ranks]
    with together(comm):
        sinks = Sinks(cfg, comm, paths, hosts)
    bad = BadSamples(cfg.data, comm, paths.bad_samples)
    writer = DatasetWriter(paths.dataset, parts.loaders, data)
    labels = checkpoint_labels(cfg, parts.loaders, parts.state.teacher)
    about = {"data": data.as_dict(), "config": cfg.model_dump()}
    cadence = Cadence(cfg.checkpoint)
    keep = to_keep(cfg)
    snapshots = Snapshots(parts.state, paths, sinks, cadence, labels, about, keep)
    snapshots.lock = directory.lock
    if cfg.checkpoint.mirror and comm.rank == 0:
        snapshots.mirror = Mirror(paths, cfg.checkpoint.mirror, keep)
    run = Run(
        cfg,
        comm,
        paths,
        parts.plan,
        parts.loaders,
        sinks,
        parts.state,
        bad,
        hosts,
        data,
        writer,
        snapshots,
        changes,
        given,
        lock=directory.lock,
        other_work=watch_for(comm.size, parts.state.settings.device),
    )
    with contextlib.ExitStack() as on_error:
        on_error.callback(run.close)
        snapshots.describe = partial(write_description, run)
        notes = [f"warning: {text}" for text in (*directory.notes, *findings)]
        notes += [*filter(None, [directory.kept]), *notes_of(changes)]
        notes += parts.state.teacher.notes if parts.state.teacher else []
        notes += compression_notes(cfg, comm.size)
        if comm.size > 1:
            notes.append(f"engine: {ENGINES[comm.engine]}, {comm.why}")
            notes.append(f"placement: {placement_text(actual_placement(ranks))}")
        if comm.size > 1 and facts:
            notes.append(f"preflight: {measured(facts)}")
        for text in notes:
            sinks.write(Note(text))
        activity.enter("looking for a checkpoint")
        loaded = restore(run, must=directory.must_resume)
        snapshots.saved_step = run.state.progress.step
        restore_masked(run)
        snapshots.reserve()
        if comm.rank == 0:
            writer.start(resumed=recorded is not None)
            _describe(run)
            if snapshots.mirror is not None:
                snapshots.mirror.look()
            tuning.write(paths.tuning)
            if comm.size > 1:
                sinks.write(Note(tuning.text))
        _describe_data(run)
        keep_start(run, loaded)
        publish(cfg.metrics, comm, paths, sinks)
        run.notices = watch(cfg.train.stop_when, snapshots.taken_s, comm, sinks.tell)
        on_error.pop_all()
    return run


def _chosen(directory: Directory, given: Config, chosen: Config, comm: Comm) -> list[Change]:
    """What the tuning of the exchange changes in a run that goes on, the same on all ranks."""
    if given.comm.compression != "auto" or not directory.must_resume:
        return []
    found: list[Change] = []
    with together(comm):
        if comm.rank == 0:
            found = chosen_compression(directory.paths, given, chosen)
    return [Change(*change) for change in json.loads(comm.gather_text(json.dumps(found))[0])]


def write_description(run: Run) -> None:
    """Write the resolved config, the environment and the names of the classes beside the results."""
    config = yaml.safe_dump(run.cfg.model_dump(), sort_keys=False, allow_unicode=True)
    write_atomically(run.paths.config, config.encode())
    environment = {
        "versions": installed_versions(),
        "host": socket.gethostname(),
        "platform": platform.platform(),
        "device": str(run.state.settings.device),
        "device_name": (
            torch.cuda.get_device_name()
            if run.state.settings.device.type == "cuda"
            else platform.processor()
        ),
        "world_size": run.comm.size,
        "engine": run.comm.engine or None,
        "given": run.given.as_dict(),
        "threads_per_rank": torch.get_num_threads(),
        "command": sys.argv,
    }
    names = "".join(f"{name!r}\n" if "\n" in name else f"{name}\n" for name in run.loaders.classes)
    write_atomically(run.paths.classes, names.encode("utf-8", "surrogateescape"))
    write_atomically(run.paths.environment, json.dumps(environment, indent=1).encode())


def _describe(run: Run) -> None:
    """Write and tell what the run is.

    A result that it has had before more epochs were added is not its result any more.
    """
    done = ended(run.cfg, run.state.progress)
    if run.state.progress.position.epoch < len(run.plan.epochs) and not done:
        with contextlib.suppress(OSError):
            run.paths.summary.unlink(missing_ok=True)
    write_description(run)
    settings = run.state.settings
    if settings.autocast == torch.float16 and settings.device.type == "cpu":
        run.sinks.write(Note(f"warning: {SLOW_FP16}"))
    for text in recipe_warnings(run.cfg, run.plan):
        run.sinks.write(Note(f"warning: {text}"))
    for kind, source in run.loaders.sources.items():
        if left_out := left_out_of(source):
            run.sinks.write(Note(f"data.{kind}: {left_out.text()}"))
    if order := run.loaders.order_warning():
        run.sinks.write(Note(f"warning: {order}"))


def _describe_data(run: Run) -> None:
    """Tell the classes, and what is unusual about the datasets."""
    classes = describe_classes(run.loaders.classes, run.loaders.sources["train"].labels)
    run.sinks.write(Note(f"classes: {classes.text()}"))
    for text in run.loaders.warnings:
        run.sinks.write(Note(f"warning: {text}"))
    if run.data.changed:
        text = "; ".join(run.data.accepted)
        run.sinks.write(Note(f"warning: other images than before, by --accept-changes: {text}"))
