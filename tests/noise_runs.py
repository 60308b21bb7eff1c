"""Run directories whose events hold a recorded noise scale."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hvdtrain.telemetry.reports import Start, json_text
from tests.made_reports import train

UPDATES = 10
"""Of each report."""


def recorded_run(
    root: Path,
    scales: Sequence[float | None],
    *,
    batches: Sequence[int] | None = None,
    phases: Sequence[int] | None = None,
    sizes: Sequence[int] | None = None,
    ranks: int = 2,
    nodes: int = 1,
    step_s: float = 0.05,
) -> Path:
    """Write `events.jsonl` with a report for each of `scales`, and return `root`."""
    count = len(scales)
    lines = [{"time": 1.0, "kind": "start", **Start(ranks, nodes, 0.5).values()}]
    for i, scale in enumerate(scales):
        batch = batches[i] if batches else 64
        report = train(
            step=UPDATES * (i + 1),
            epoch=(i + 1) / count,
            epochs=1,
            phase=phases[i] if phases else 0,
            image_size=sizes[i] if sizes else 32,
            batch_per_worker=batch // ranks,
            global_batch_size=batch,
            samples=float(UPDATES * batch),
            seconds=UPDATES * step_s,
            step_seconds=step_s,
            gradient_noise_scale=scale,
        )
        lines.append({"time": 2.0 + i, "kind": "train", **report.values()})
    root.mkdir(exist_ok=True)
    (root / "events.jsonl").write_text("".join(json_text(line) + "\n" for line in lines))
    return root
