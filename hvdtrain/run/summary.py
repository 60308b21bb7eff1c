"""What a run leaves behind when it has ended."""

from __future__ import annotations

import json

from hvdtrain import activity
from hvdtrain.engine.noise_scale import advice
from hvdtrain.files import write_atomically
from hvdtrain.run.attempts import Earlier
from hvdtrain.run.changes import accepted_before
from hvdtrain.run.patience import by_evaluations, may_end_early
from hvdtrain.run.prepare import Run
from hvdtrain.run.restore import ORIGIN
from hvdtrain.telemetry.reports import End, Eval, Note, RunScaling, json_text


def write_summary(
    run: Run, evaluation: Eval | None, scaling: RunScaling, wall_s: float, earlier: Earlier
) -> End:
    """Report the end of the run, the same on every rank; rank 0 writes it as `summary.json`.

    `evaluation`: the last one. `scaling` and `wall_s` (seconds) are those of this attempt.
    """
    state, progress = run.state, run.state.progress
    settings = accepted_before(run.paths) if run.comm.rank == 0 else []
    accepted: list[str] = json.loads(run.comm.gather_text(json.dumps(settings))[0])
    accepted += run.data.accepted
    found = progress.evaluated
    best = {"loss": found.best_loss, "epoch": found.best_epoch, "step": found.best_step}
    noise, batch = state.noise.scale.images, run.plan.epochs[-1].global_batch_size
    powersgd = ["powersgd_rank"] if run.cfg.comm.compression == "powersgd" else []
    end = End(
        name=run.cfg.name,
        run_dir=str(run.paths.root),
        world_size=run.comm.size,
        epochs=len(run.plan.epochs),
        steps=progress.step,
        samples=progress.samples,
        loss=evaluation.loss if evaluation else None,
        top1=evaluation.top1 if evaluation else None,
        top5=evaluation.top5 if evaluation else None,
        images_per_second=progress.samples / max(progress.train_seconds, 1e-9),
        scaling_efficiency=scaling.efficiency,
        lost_time=scaling.lost,
        comm=run.cfg.comm.model_dump(include={"tune", "group_mb", "compression", *powersgd})
        | {"engine": run.comm.engine or None},
        noise_scale=advice(noise, batch) if noise is not None else None,
        train_seconds=progress.train_seconds,
        wall_seconds=wall_s,
        classes=run.data.classes,
        accepted_changes=accepted,
        attempts=earlier.attempts + 1,
        attempt_train_seconds=progress.train_seconds - earlier.train_seconds,
        run_wall_seconds=earlier.wall_seconds + wall_s,
        best=best if by_evaluations(run.cfg) else None,
        stopped_early=(
            progress.position.epoch < len(run.plan.epochs) if may_end_early(run.cfg) else None
        ),
        views=evaluation.views if evaluation and evaluation.views != "one" else None,
        weights_from=run.snapshots.about.get(ORIGIN),
    )
    if run.comm.rank == 0:
        write_atomically(run.paths.summary, json_text(end.values(), indent=1).encode())
    run.sinks.write(end)
    return end


def write_page(run: Run) -> None:
    """Write `report.html` on rank 0; if that fails, the run does not fail, but a note says so."""
    if run.comm.rank > 0:
        return
    activity.enter("writing report.html")
    try:
        from hvdtrain.report.write import write_report

        write_report([run.paths.root], run.paths.report)
    except Exception as error:  # noqa: BLE001
        run.sinks.write(Note(f"warning: no report.html: {error}"))
