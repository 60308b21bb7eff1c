"""The report page: figures and plots of all runs side by side, then the details of each run."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

from hvdtrain import __version__
from hvdtrain.report import plots as report_plots
from hvdtrain.report.figures import Prices, RunFigures, TargetResult
from hvdtrain.report.html import fill, label_svg, run_label
from hvdtrain.report.phases import PhaseSpeed
from hvdtrain.report.plan import plan_of
from hvdtrain.report.run import RunRecord
from hvdtrain.report.shares import LOST
from hvdtrain.report.targets import Target
from hvdtrain.report.text import (
    MISSING,
    count,
    dollars,
    duration,
    exact_efficiency,
    metric_value,
    plain,
    progress,
    ratio,
    target_name,
    views_text,
)


class Table(NamedTuple):
    """Rows of cells; `numbers` are the columns that are set flush right."""

    head: list[str]
    rows: list[list[str]]
    numbers: list[int]


def render(
    runs: list[RunRecord], figures: list[RunFigures], targets: list[Target], prices: Prices
) -> str:
    """The page as text; `figures` are those of each run."""
    single = len(runs) == 1
    named = (("on demand", prices.on_demand), ("on spot", prices.spot))
    return fill(
        "report.html",
        single=single,
        title=runs[0].name if single else f"{len(runs)} runs compared",
        version=__version__,
        now=time.time(),
        runs=runs,
        figures=figures,
        labels=[run_label(index, run.label) for index, run in enumerate(runs)],
        tiles=_tiles(figures[0]) if single else [],
        comparison=_comparison(figures),
        targets=_targets(figures),
        costs=_costs(figures),
        prices=[f"${price:g} {name}" for name, price in named if price is not None],
        phases=_phases(figures),
        shares=_shares(figures),
        sections={
            title: [(plot, label_svg(report_plots.svg(plot), plot.title)) for plot in plots]
            for title, plots in report_plots.sections(runs, targets)
        },
        plans=[plan_of(run) for run in runs],
        bad_reasons=[Counter(str(bad.get("reason")) for bad in run.bad_samples) for run in runs],
    )


def _tiles(run: RunFigures) -> list[tuple[str, str]]:
    """The few figures that matter most."""
    figures = [
        (f"top-1{views_text(run.views)}", run.top1, ratio),
        (f"training time{_of_attempts(run)}", run.train_seconds or None, duration),
        (f"wall time{_of_attempts(run)}", run.wall_seconds, duration),
        ("images/s", run.images_per_second, count),
        ("scaling efficiency", run.scaling_efficiency, exact_efficiency),
        ("cost on demand", run.cost.cost, dollars),
        ("cost on spot", run.cost.spot_cost, dollars),
    ]
    return [(name, write(value)) for name, value, write in figures if value is not None]


def _of_attempts(run: RunFigures) -> str:
    return f", all {run.attempts} attempts" if run.attempts > 1 else ""


def _comparison(figures: list[RunFigures]) -> Table:
    """One column for each run; rows without any value are left out."""
    rows = [
        ("progress", [progress(f) for f in figures]),
        ("top-1", [ratio(f.top1) for f in figures]),
        ("top-5", [ratio(f.top5) for f in figures]),
        ("loss of the evaluation", [plain(f.loss) for f in figures]),
        ("best top-1", [_best(f) for f in figures]),
        ("views of each validation image", _views(figures)),
        ("training images used", [count(f.samples) for f in figures]),
        ("images/s, all ranks", [count(f.images_per_second) for f in figures]),
        ("scaling efficiency", [exact_efficiency(f.scaling_efficiency) for f in figures]),
        ("batch by the noise scale", [_noise(f.noise_scale) for f in figures]),
        ("ranks", [count(f.world_size) for f in figures]),
        ("training time", [duration(f.train_seconds) for f in figures]),
        ("wall time", [duration(f.wall_seconds) for f in figures]),
        ("attempts", [count(f.attempts) for f in figures]),
        ("training time of the last attempt", [_of_last(f, f.last_train_seconds) for f in figures]),
        ("wall time of the last attempt", [_of_last(f, f.last_wall_seconds) for f in figures]),
        ("paused between attempts", [duration(f.paused_seconds or None) for f in figures]),
        ("steps made twice", [duration(f.redone_seconds or None) for f in figures]),
        ("bad images", [count(f.bad_samples or None) for f in figures]),
    ]
    names = [run_label(index, run.run) for index, run in enumerate(figures)]
    filled = [[name, *cells] for name, cells in rows if any(cell != MISSING for cell in cells)]
    return Table(["", *names] if len(names) > 1 else [], filled, [])


def _of_last(run: RunFigures, seconds: float) -> str:
    return duration(seconds) if run.attempts > 1 else MISSING


def _views(figures: list[RunFigures]) -> list[str]:
    """Where some run has more than one."""
    several = any(f.views != "one" for f in figures)
    return [f.views if several and f.top1 is not None else MISSING for f in figures]


def _best(run: RunFigures) -> str:
    if run.best_top1 is None:
        return MISSING
    return f"{ratio(run.best_top1)} (epoch {run.best_top1_epoch:.4g})"


def _noise(advice: dict[str, float] | None) -> str:
    if advice is None:
        return MISSING
    return (
        f"{count(advice['recommended_batch'])}; twice the batch of {count(advice['batch'])} would "
        f"take {advice['doubling_steps']:.2f}× the steps and {advice['doubling_images']:.2f}× the "
        "images"
    )


def _by_run(figures: list[RunFigures], head: list[str], rows: Sequence[Sequence[str]]) -> Table:
    """A table without its empty columns, and without the first one, the run, if there is one run."""
    first = 0 if len(figures) > 1 else 1
    shown = [i for i in range(first, len(head)) if any(row[i] != MISSING for row in rows)]
    numbers = [place for place, i in enumerate(shown) if i > 0 and head[i] != "target"]
    return Table([head[i] for i in shown], [[row[i] for i in shown] for row in rows], numbers)


def _targets(figures: list[RunFigures]) -> Table:
    """Time and cost to each target."""
    rows = [
        [run_label(index, run.run), *_target_cells(target)]
        for index, run in enumerate(figures)
        for target in run.targets
    ]
    head = ["run", "target", "result", "epoch", "images", "training", "wall", "on demand", "spot"]
    return _by_run(figures, head, rows)


def _target_cells(target: TargetResult) -> list[str]:
    name, reached = target_name(target.metric, target.target), target.reached
    if reached is None:
        best = metric_value(target.metric, target.best)
        return [name, f"not reached, best {best}", *[MISSING] * 6]
    return [
        name,
        metric_value(target.metric, reached.value),
        plain(reached.epoch),
        count(reached.samples),
        duration(reached.train_seconds),
        duration(reached.wall_seconds),
        dollars(reached.cost.cost),
        dollars(reached.cost.spot_cost),
    ]


def _costs(figures: list[RunFigures]) -> Table:
    """Cost of each run."""
    rows = [
        [
            run_label(index, run.run),
            f"{run.nodes}{' (assumed)' if run.nodes_assumed else ''}",
            duration(run.billed_seconds),
            plain(run.cost.node_hours),
            dollars(run.cost.cost),
            dollars(run.cost.spot_cost),
        ]
        for index, run in enumerate(figures)
    ]
    head = ["run", "nodes", "billed", "node-hours", "on demand", "spot"]
    return _by_run(figures, head, rows)


def _phases(figures: list[RunFigures]) -> Table:
    """Speed by phase."""
    head = ["images", "time", "images/s", "efficiency"]
    return _by_phase(
        figures,
        head,
        lambda phase: [
            count(phase.images),
            duration(phase.seconds),
            count(phase.images_per_second),
            exact_efficiency(phase.efficiency),
        ],
    )


def _shares(figures: list[RunFigures]) -> Table:
    """Shares of the time by phase: lost time first, then the waits."""
    phases = [phase for run in figures for phase in run.phases]
    found = dict.fromkeys(name for phase in phases for name in phase.ratios)
    names = sorted(found, key=lambda name: not name.startswith(LOST))
    head = [name.replace("_", " ") for name in names]
    table = _by_phase(
        figures, head, lambda phase: [ratio(phase.ratios.get(name)) for name in names]
    )
    return table if names else Table([], [], [])


def _by_phase(
    figures: list[RunFigures], head: list[str], cells: Callable[[PhaseSpeed], list[str]]
) -> Table:
    """A table with one row for each phase of each run; `cells` are those after the phase's own."""
    rows = [
        [
            run_label(index, run.run),
            f"{phase.first_epoch:.4g}–{phase.last_epoch:.4g}",
            MISSING if phase.image_size is None else f"{phase.image_size} px",
            count(phase.global_batch_size),
            *cells(phase),
        ]
        for index, run in enumerate(figures)
        for phase in run.phases
    ]
    return _by_run(figures, ["run", "epochs", "image size", "global batch", *head], rows)
