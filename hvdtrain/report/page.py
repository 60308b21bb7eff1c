"""The report page: figures and plots of all runs side by side, then what each run tells alone."""

from __future__ import annotations

import time

from hvdtrain import __version__
from hvdtrain.report import plots as report_plots
from hvdtrain.report.details import alone
from hvdtrain.report.figures import Prices, RunFigures, TargetResult
from hvdtrain.report.html import (
    Html,
    figure,
    join,
    page,
    run_label,
    section,
    table,
    tag,
    tiles,
)
from hvdtrain.report.run import RunRecord
from hvdtrain.report.targets import Target
from hvdtrain.report.text import (
    MISSING,
    count,
    dollars,
    duration,
    metric_value,
    plain,
    progress,
    ratio,
    target_name,
    when,
)


def render(
    runs: list[RunRecord], figures: list[RunFigures], targets: list[Target], prices: Prices
) -> str:
    """The page as text; `figures` are those of each run."""
    single = len(runs) == 1
    title = runs[0].name if single else f"{len(runs)} runs compared"
    damaged = [f"{f.run}: {f.damaged_lines}" for f in figures if f.damaged_lines]
    warning = f"Damaged lines left out: {', '.join(damaged)}." if damaged else ""
    about = f"{runs[0].label}: {progress(figures[0])}. " if single else ""
    made = f"{about}Report by hvdtrain {__version__}, {when(time.time())}."
    parts = [
        tag("h1", title),
        tag("p", made, "quiet"),
        tag("p", warning, "warn") if warning else "",
        _key(runs) if not single else _tiles(figures[0]),
        section("Summary" if single else "Comparison", _comparison(figures)),
        section("Time to accuracy", *_time_to_accuracy(figures)),
        section("Cost", *_cost(figures, prices)),
        *_plots(runs, figures, targets),
        *(alone(run, index, titled=not single) for index, run in enumerate(runs)),
    ]
    return page(f"{title} – hvdtrain report", join(parts))


def _key(runs: list[RunRecord]) -> Html:
    return tag(
        "div", join(tag("span", run_label(i, run.label)) for i, run in enumerate(runs)), "key"
    )


def _tiles(run: RunFigures) -> Html:
    pairs = [
        ("top-1", run.top1, ratio),
        ("training time", run.train_seconds or None, duration),
        ("wall time", run.wall_seconds, duration),
        ("images/s", run.images_per_second, count),
        ("scaling efficiency", run.scaling_efficiency, ratio),
        ("cost on demand", run.cost.cost, dollars),
        ("cost on spot", run.cost.spot_cost, dollars),
    ]
    return tiles((name, write(value)) for name, value, write in pairs if value is not None)


def _comparison(figures: list[RunFigures]) -> Html:
    """One column for each run; rows that no run fills are left out."""
    rows = [
        ("progress", [progress(f) for f in figures]),
        ("top-1", [ratio(f.top1) for f in figures]),
        ("top-5", [ratio(f.top5) for f in figures]),
        ("loss of the evaluation", [plain(f.loss) for f in figures]),
        ("best top-1", [_best(f) for f in figures]),
        ("training images used", [count(f.samples) for f in figures]),
        ("images/s, all ranks", [count(f.images_per_second) for f in figures]),
        ("scaling efficiency", [ratio(f.scaling_efficiency) for f in figures]),
        ("batch by the noise scale", [_noise(f.noise_scale) for f in figures]),
        ("ranks", [count(f.world_size) for f in figures]),
        ("training time", [duration(f.train_seconds) for f in figures]),
        ("wall time", [duration(f.wall_seconds) for f in figures]),
        ("attempts", [count(f.attempts) for f in figures]),
        ("paused between attempts", [duration(f.paused_seconds or None) for f in figures]),
        ("steps made twice", [duration(f.redone_seconds or None) for f in figures]),
        ("bad images", [count(f.bad_samples or None) for f in figures]),
    ]
    head = [""] + ([run_label(i, f.run) for i, f in enumerate(figures)] if figures[1:] else [""])
    filled = [[name, *cells] for name, cells in rows if any(cell != MISSING for cell in cells)]
    return table(head, filled)


def _noise(advice: dict[str, float] | None) -> str:
    if advice is None:
        return MISSING
    return (
        f"{count(advice['recommended_batch'])}; twice the batch of {count(advice['batch'])} would "
        f"take {advice['doubling_steps']:.2f}× the steps and {advice['doubling_images']:.2f}× the "
        "images"
    )


def _best(run: RunFigures) -> str:
    if run.best_top1 is None:
        return MISSING
    return f"{ratio(run.best_top1)} (epoch {run.best_top1_epoch:.4g})"


def _by_run(figures: list[RunFigures], head: list[str], rows: list[list[str]]) -> Html:
    """A table whose first column names the run if there are several; without empty columns."""
    first = 0 if len(figures) > 1 else 1
    shown = [i for i in range(first, len(head)) if any(row[i] != MISSING for row in rows)]
    texts = [head[i] for i in shown]
    numbers = [place for place, i in enumerate(shown) if i > 0 and head[i] != "target"]
    return table(texts, [[row[i] for i in shown] for row in rows], numbers)


def _time_to_accuracy(figures: list[RunFigures]) -> list[Html]:
    if not any(f.targets for f in figures):
        return []
    rows = []
    for index, run in enumerate(figures):
        for target in run.targets:
            name = target_name(target.metric, target.target)
            cells = _target_cells(target)
            rows.append([run_label(index, run.run), name, *cells])
    head = ["run", "target", "result", "epoch", "images", "training", "wall", "on demand", "spot"]
    text = (
        "At the first evaluation that reaches the target. Training time is that of the training "
        "steps that led there. Wall time runs from the run's first start and has everything in it: "
        "set-up, evaluation, checkpoints, restarts and the pauses before them."
    )
    return [_by_run(figures, head, rows), tag("p", text, "quiet")]


def _target_cells(target: TargetResult) -> list[str]:
    reached = target.reached
    if reached is None:
        best = metric_value(target.metric, target.best)
        return [f"not reached, best {best}", *[MISSING] * 6]
    return [
        metric_value(target.metric, reached.value),
        plain(reached.epoch),
        count(reached.samples),
        duration(reached.train_seconds),
        duration(reached.wall_seconds),
        dollars(reached.cost.cost),
        dollars(reached.cost.spot_cost),
    ]


def _cost(figures: list[RunFigures], prices: Prices) -> list[Html]:
    if prices.on_demand is None and prices.spot is None:
        return []
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
    given = [
        f"${price:g} {name}"
        for name, price in (("on demand", prices.on_demand), ("on spot", prices.spot))
        if price is not None
    ]
    text = (
        f"Prices per node-hour: {', '.join(given)}. Counted is the wall time of every attempt times "
        "its nodes: set-up, evaluation, checkpoints and steps made twice after a restart. Not "
        "counted: pauses between attempts, what a killed attempt ran after its last event, and "
        "what comes before and after hvdtrain itself (booting nodes, copying data)."
    )
    if any(run.nodes_assumed for run in figures):
        text += " Where the number of nodes is assumed, --nodes sets it."
    head = ["run", "nodes", "billed", "node-hours", "on demand", "spot"]
    return [_by_run(figures, head, rows), tag("p", text, "quiet")]


def _plots(runs: list[RunRecord], figures: list[RunFigures], targets: list[Target]) -> list[Html]:
    extras = {"Throughput": _phases(figures)}
    found = []
    for title, plots in report_plots.sections(runs, targets):
        drawn = join(figure(report_plots.svg(p), p.title, p.note) for p in plots)
        found.append(section(title, extras.get(title, ""), tag("div", drawn, "plots")))
    return found


def _phases(figures: list[RunFigures]) -> Html:
    phases = [(index, run, phase) for index, run in enumerate(figures) for phase in run.phases]
    names = list(dict.fromkeys(name for _i, _run, phase in phases for name in phase.ratios))
    head = ["run", "epochs", "image size", "global batch", "images", "time", "images/s"]
    head += ["efficiency", *(name.replace("_", " ") for name in names)]
    rows = [
        [
            run_label(index, run.run),
            f"{phase.first_epoch:.4g}–{phase.last_epoch:.4g}",
            MISSING if phase.image_size is None else f"{phase.image_size} px",
            count(phase.global_batch_size),
            count(phase.images),
            duration(phase.seconds),
            count(phase.images_per_second),
            ratio(phase.efficiency),
            *(ratio(phase.ratios.get(name)) for name in names),
        ]
        for index, run, phase in phases
    ]
    return _by_run(figures, head, rows)
