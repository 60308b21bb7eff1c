"""Figures as text, and the lines that `hvdtrain report` prints."""

from __future__ import annotations

import math
import time

from hvdtrain.report.figures import Cost, RunFigures, TargetResult

MISSING = "–"
ABOVE_ONE = "above 100 % nothing is lost: the reference, calibration, ran slower than training"
"""What a scaling efficiency above 100 % means: its baseline was measured too low."""


def ratio(value: float | None) -> str:
    """A ratio (0–1) as per cent."""
    return MISSING if value is None else f"{100 * value:.2f}\N{NO-BREAK SPACE}%"


def efficiency_text(value: float | None) -> str:
    """Scaling efficiency in whole per cent, and what it means above 100 %."""
    if value is None:
        return MISSING
    text = f"{value:.0%}"
    return f"{text} ({ABOVE_ONE})" if round(value, 2) > 1 else text


def exact_efficiency(value: float | None) -> str:
    """The same with the digits of `ratio`."""
    text = ratio(value)
    return f"{text} ({ABOVE_ONE})" if value is not None and round(value, 4) > 1 else text


def count(value: float | None) -> str:
    """A whole number with thousands separators."""
    return MISSING if value is None else f"{value:,.0f}"


def plain(value: float | None) -> str:
    """A number with four significant digits."""
    return MISSING if value is None else f"{value:.4g}"


def dollars(value: float | None) -> str:
    """Dollars and cents, with more digits below one dollar."""
    if value is None:
        return MISSING
    return f"${value:,.2f}" if value >= 1 or value == 0 else f"${value:.3g}"


def duration(seconds: float | None) -> str:
    """A time as 1 d 2 h 03 min, 2 h 03 min, 12 min 05 s, 8.1 s or 26 ms."""
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
    """A Unix time as date and time in UTC."""
    try:
        return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(unix_s))
    except (OverflowError, ValueError, OSError):
        return MISSING


def target_name(metric: str, value: float) -> str:
    """A target as text."""
    if metric == "loss":
        return f"loss ≤ {value:g}"
    return f"{metric.replace('top', 'top-')} ≥ {100 * value:g}\N{NO-BREAK SPACE}%"


def views_text(views: object) -> str:
    """What follows a number of images, or a result, of several views of each image; see `train.val_views`."""
    count = {"mirror": 2, "six": 6}.get(views) if isinstance(views, str) else None
    return f", {count} views of each" if count else ""


def metric_value(metric: str, value: float | None) -> str:
    """An evaluation result as text."""
    return plain(value) if metric == "loss" else ratio(value)


def progress(run: RunFigures) -> str:
    """How far a run has come."""
    if run.epoch is None:
        return "no step made"
    of = f" of {run.epochs}" if run.epochs else ""
    word = "finished" if run.finished else "unfinished"
    return f"{word}, epoch {run.epoch:.4g}{of}"


def lines(runs: list[RunFigures]) -> str:
    """A few lines for each run."""
    texts = []
    for run in runs:
        top1 = f"{ratio(run.top1)}{views_text(run.views)}"
        texts.append(f"{run.run}  {progress(run)}  top-1 {top1}  {_times(run)}")
        texts += [
            f"  {target_name(target.metric, target.target)}: {_target(target)}"
            for target in run.targets
        ]
        if costs := _costs(run.cost):
            assumed = " (1 node assumed: set the number with --nodes)" if run.nodes_assumed else ""
            hours = f"{run.cost.node_hours:.4g} node-hours{assumed}"
            texts.append(f"  cost: {', '.join(costs)} for {hours}")
        if run.damaged_lines:
            texts.append(f"  {run.damaged_lines} damaged lines left out")
    return "\n".join(texts)


def _times(run: RunFigures) -> str:
    whole = f"training {duration(run.train_seconds)}  wall {duration(run.wall_seconds)}"
    if run.attempts == 1:
        return whole
    last = f"{duration(run.last_train_seconds)}  wall {duration(run.last_wall_seconds)}"
    return f"all {run.attempts} attempts: {whole}; the last one: training {last}"


def _target(target: TargetResult) -> str:
    if target.reached is None:
        return f"not reached, best {metric_value(target.metric, target.best)}"
    times = (
        f"training {duration(target.reached.train_seconds)}, "
        f"wall {duration(target.reached.wall_seconds)}, epoch {target.reached.epoch:.4g}"
    )
    return ", ".join([times, *_costs(target.reached.cost)])


def _costs(cost: Cost) -> list[str]:
    prices = (("on demand", cost.cost), ("spot", cost.spot_cost))
    return [f"{dollars(value)} {name}" for name, value in prices if value is not None]
