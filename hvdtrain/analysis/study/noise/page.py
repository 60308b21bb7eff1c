"""The page of `hvdtrain study noise-scale`: tables and pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from hvdtrain.analysis.study.noise import words
from hvdtrain.analysis.study.noise.answers import Found, Results
from hvdtrain.analysis.study.noise.nodes import Answer, Offer
from hvdtrain.analysis.study.noise.recorded import Interval, Recorded
from hvdtrain.analysis.study.noise.trade_off import TradeOff
from hvdtrain.report.charts import Chart, Line
from hvdtrain.report.page import Table
from hvdtrain.report.study import Section
from hvdtrain.scaling.ends import Ends, low_high

BINS = 60
"""Most points of a curve over updates."""
BAND = "bands: lowest and highest value of neighbouring reports; the batch is dashed"
RANGES = "lines: slow end of the prediction; bands: down to the fast end"
INTERVALS = "bands: 95 % confidence intervals"


def sections_of(results: Results, price: float | None) -> list[Section]:
    """All sections of the page."""
    sections = []
    for number, found in enumerate(results.found):
        sections.append(_noise(found, number))
        if found.trade_off is not None:
            sections.append(_trade_off(found, found.trade_off, number))
        for answer in found.answers:
            first = answer is found.answers[0]
            sections.append(_nodes(found, answer, first, number, price))
    if (chart := _over_updates(results.found)) is not None:
        sections.append(Section("Noise scale of the checkpoints", "", None, (chart,)))
    text = " ".join(words.assumptions(results))
    return [*sections, Section("What this assumes", text)]


def _stem(what: str, number: int) -> str:
    return what if number == 0 else f"{what}-{number + 1}"


def _text(lines: Sequence[str]) -> str:
    return " ".join(f"{line[0].upper()}{line[1:]}." for line in lines)


def _table(head_and_rows: tuple[list[str], list[list[str]]]) -> Table:
    head, rows = head_and_rows
    return Table(head, rows, list(range(1, len(head))))


def _noise(found: Found, number: int) -> Section:
    title = f"Noise scale of {found.name}"
    if found.recorded is None:
        return Section(title, _text(words.sentences(found)))
    chart = Chart(
        *(_stem("noise-scale", number), f"noise scale of {found.name}", "updates", "images", BAND),
        lines=_recorded_lines(found.recorded),
        log_y=True,
    )
    table = _table(words.parts_table(found))
    return Section(title, _text(words.sentences(found)), table, (chart,))


def _recorded_lines(recorded: Recorded) -> tuple[Line, ...]:
    xs, means, lows, highs = [], [], [], []
    for part in _binned(recorded.measured):
        scales = [each.scale or 0.0 for each in part]
        xs.append(part[-1].step)
        means.append(sum(scales) / len(scales))
        lows.append(min(scales))
        highs.append(max(scales))
    steps, batches = [], []
    for each in recorded.intervals:
        steps += [each.step - each.updates, each.step]
        batches += [float(each.batch)] * 2
    return (
        Line("noise scale", xs, means, lows, highs),
        Line("global batch", steps, batches, color=1, dash=1),
    )


def _binned(intervals: Sequence[Interval]) -> list[Sequence[Interval]]:
    size = -(-len(intervals) // BINS)
    return [intervals[first : first + size] for first in range(0, len(intervals), size)]


def _over_updates(found: Sequence[Found]) -> Chart | None:
    """The measured noise scales of several checkpoints of a run, for each such run."""
    runs: dict[str, list[dict[str, Any]]] = {}
    for each in found:
        if each.measured.get("resolved"):
            runs.setdefault(each.name.rpartition(" ")[0], []).append(each.measured)
    lines = []
    for number, (run, points) in enumerate(runs.items()):
        points.sort(key=lambda one: float(one["step"]))
        columns = ([float(one[key]) for one in points] for key in ("step", "scale", "low", "high"))
        xs, scales, lows, highs = columns
        if len(set(xs)) > 1:
            lines.append(Line(run, xs, scales, lows, highs, number, number))
    if not lines:
        return None
    title, xlabel = "measured noise scale", "updates of the checkpoint"
    return Chart("checkpoints", title, xlabel, "images", INTERVALS, tuple(lines), log_y=True)


def _trade_off(found: Found, trade_off: TradeOff, number: int) -> Section:
    rows = trade_off.rows()
    xs = [row["images_over_fewest"] for row in rows]
    ys = [row["updates_over_fewest"] for row in rows]
    [own] = [row for row in rows if row["own"]]
    now, critical = f"now: batch {own['batch']:,.0f}", f"critical batch {trade_off.critical:,.0f}"
    here = ([own["images_over_fewest"]], [own["updates_over_fewest"]])
    pareto = Chart(
        *(_stem("trade-off", number), "updates against images"),
        *("images ÷ fewest: computation", "updates ÷ fewest: time"),
        "each mark of the line is a batch twice as large",
        lines=(
            Line("batches, powers of two", xs, ys),
            Line(critical, [2.0], [2.0], color=2),
            Line(now, *here, color=1),
        ),
        log_x=True,
        log_y=True,
    )
    batches = [float(row["batch"]) for row in rows]
    at = float(own["batch"])
    by_batch = Chart(
        *(_stem("by-batch", number), "what a batch needs", "global batch (images)"),
        "÷ the run as it is",
        "updates to the same loss, and images",
        lines=(
            Line("updates: time", batches, [row["updates_over_own"] for row in rows]),
            Line(
                "images: computation",
                batches,
                [row["images_over_own"] for row in rows],
                color=2,
                dash=1,
            ),
            Line(now, [at], [1.0], color=1),
        ),
        log_x=True,
        log_y=True,
        x_ticks=tuple(2.0**power for power in range(64) if batches[0] <= 2**power <= batches[-1]),
    )
    text = (
        "To the same loss, a larger batch needs fewer updates and more images: one costs time, the other "
        "computation."
    )
    title = f"Trade-off of {found.name}"
    return Section(title, text, _table(words.trade_off_table(trade_off)), (pareto, by_batch))


def _nodes(found: Found, answer: Answer, first: bool, number: int, price: float | None) -> Section:
    gbit = f"{answer.link_gbit:g}"
    stem = _stem("nodes", number) + ("" if first else f"-{gbit}-gbit")
    about = [words.speed(found)] if first else []
    text = _text([words.verdict(answer), words.late_ranks(answer), *about])
    table = _table(words.nodes_table(answer, price))
    title = f"Nodes for {found.name} at {gbit} Gbit/s"
    return Section(title, text, table, tuple(_node_charts(answer, stem)))


def _node_charts(answer: Answer, stem: str) -> list[Chart]:
    nodes = [float(offer.nodes) for offer in answer.fastest]
    best, unit, per = answer.advised, *_unit(answer)
    title = f"at {answer.link_gbit:g} Gbit/s"

    def drawn(name: str, of: str, value: Callable[[Offer], Ends[float]]) -> Chart:
        labels = (f"advised: batch {best.batch:,}", f"now: batch {answer.own.batch:,}")

        def line(label: str, offers: Sequence[Offer], color: int, dash: int) -> Line:
            ends = [value(offer) for offer in offers]
            lows, highs = zip(*map(low_high, ends), strict=True)
            at = [float(offer.nodes) for offer in offers]
            return Line(
                label, at, [each.slow for each in ends], list(lows), list(highs), color, dash
            )

        return Chart(
            *(f"{stem}-{name}", f"{of} {title}", "nodes", f"{of} ({unit[name]})", RANGES),
            lines=(
                line("fastest batch", answer.fastest, 0, 0),
                line("the run's images per rank", answer.same_share, 3, 1),
                line(labels[0], [best], 2, 0),
                line(labels[1], [answer.own], 1, 0),
            ),
            log_x=True,
            log_y=True,
            x_ticks=tuple(nodes),
        )

    return [
        drawn(
            "time",
            "time to the same loss",
            lambda offer: offer.seconds.map(lambda s: s / per),
        ),
        drawn("node-hours", "node-hours", lambda offer: offer.node_hours),
    ]


def _unit(answer: Answer) -> tuple[dict[str, str], float]:
    """Of the time axis, and its seconds."""
    for name, seconds in (("hours", 3600.0), ("minutes", 60.0)):
        if answer.own.seconds.slow >= seconds:
            return {"time": name, "node-hours": "nodes × hours"}, seconds
    return {"time": "seconds", "node-hours": "nodes × hours"}, 1.0
