"""How a report writes figures, and the lines that `hvdtrain report` prints."""

from __future__ import annotations

import math
import time
from typing import Any

MISSING = "–"


def ratio(value: float | None) -> str:
    """0–1 as per cent."""
    return MISSING if value is None else f"{100 * value:.2f}\N{NO-BREAK SPACE}%"


def count(value: float | None) -> str:
    """A whole number with separators."""
    return MISSING if value is None else f"{value:,.0f}"


def plain(value: float | None) -> str:
    """Four figures."""
    return MISSING if value is None else f"{value:.4g}"


def dollars(value: float | None) -> str:
    """Cents, and more figures below one dollar."""
    if value is None:
        return MISSING
    return f"${value:,.2f}" if value >= 1 or value == 0 else f"${value:.3g}"


def duration(seconds: float | None) -> str:
    """1 d 2 h 03 min, 2 h 03 min, 12 min 05 s, 8.1 s, 26 ms."""
    if seconds is None or not math.isfinite(seconds):
        return MISSING
    if 0 < seconds < 1:
        return f"{1000 * seconds:.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    minutes = round(seconds / 60)
    days, hours = minutes // 1440, minutes // 60 % 24
    return f"{f'{days} d ' if days else ''}{hours} h {minutes % 60:02d} min"


def when(unix_s: float) -> str:
    """A moment, in UTC."""
    try:
        return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(unix_s))
    except (OverflowError, ValueError, OSError):
        return MISSING


def target_name(metric: str, value: float) -> str:
    """The target in words."""
    if metric == "loss":
        return f"loss ≤ {value:g}"
    return f"{metric.replace('top', 'top-')} ≥ {100 * value:g}\N{NO-BREAK SPACE}%"


def metric_value(metric: str, value: float | None) -> str:
    """An evaluation result as its metric is written."""
    return plain(value) if metric == "loss" else ratio(value)


def progress(run: dict[str, Any]) -> str:
    """How far a run came."""
    if run["epoch"] is None:
        return "no step made"
    of = f" of {run['epochs']}" if run["epochs"] else ""
    word = "finished" if run["finished"] else "unfinished"
    return f"{word}, epoch {run['epoch']:.4g}{of}"


def lines(runs: list[dict[str, Any]]) -> str:
    """A few lines for each run."""
    found = []
    for run in runs:
        found.append(
            f"{run['run']}  {progress(run)}  top-1 {ratio(run['top1'])}  "
            f"training {duration(run['train_seconds'])}  wall {duration(run['wall_seconds'])}"
        )
        found += [
            f"  {target_name(target['metric'], target['target'])}: {_target(target)}"
            for target in run["targets"]
        ]
        if run["cost"] is not None or run["spot_cost"] is not None:
            kinds = (("on demand", run["cost"]), ("spot", run["spot_cost"]))
            costs = ", ".join(
                f"{dollars(value)} {name}" for name, value in kinds if value is not None
            )
            assumed = " (1 node assumed: name them with --nodes)" if run["nodes_assumed"] else ""
            found.append(f"  cost: {costs} for {run['node_hours']:.4g} node-hours{assumed}")
        if run["damaged_lines"]:
            found.append(f"  {run['damaged_lines']} damaged lines left out")
    return "\n".join(found)


def _target(target: dict[str, Any]) -> str:
    if not target["reached"]:
        return f"not reached, best {metric_value(target['metric'], target['best'])}"
    costs = [
        f"{dollars(value)} {name}"
        for name, value in (("on demand", target["cost"]), ("spot", target["spot_cost"]))
        if value is not None
    ]
    times = (
        f"training {duration(target['train_seconds'])}, wall {duration(target['wall_seconds'])}, "
        f"epoch {target['epoch']:.4g}"
    )
    return ", ".join([times, *costs])
