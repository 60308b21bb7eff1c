"""What a run leaves behind when it has ended."""

from __future__ import annotations

import json
from typing import Any

from hvdtrain.engine.noise_scale import advice
from hvdtrain.files import write_atomically
from hvdtrain.run.prepare import Run


def write_summary(
    run: Run, result: dict[str, float], efficiency: dict[str, Any], wall_s: float
) -> dict[str, Any]:
    """`summary.json` by rank 0; the same values on every rank. `result` of the last evaluation,
    `efficiency` of this attempt."""
    state, progress = run.state, run.state.progress
    noise, batch = state.noise.scale.images, run.plan.epochs[-1].global_batch_size
    summary = {
        "name": run.cfg.name,
        "run_dir": str(run.paths.root),
        "world_size": run.comm.size,
        "epochs": len(run.plan.epochs),
        "steps": progress.step,
        "samples": progress.samples,
        **result,
        "images_per_second": progress.samples / max(progress.train_seconds, 1e-9),
        **efficiency,
        "comm": run.cfg.comm.model_dump(include={"tune", "group_mb", "compression"}),
        "noise_scale": advice(noise, batch) if noise is not None else None,
        "train_seconds": progress.train_seconds,
        "wall_seconds": wall_s,
    }
    if run.comm.rank == 0:
        write_atomically(run.paths.summary, json.dumps(summary, indent=1).encode())
    run.sinks.write("end", summary)
    return summary
