"""What the reports of `study lr-batch` and `study parallel` show beside those of every study."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence

from hvdtrain.analysis.study.table import Group
from hvdtrain.report.charts import Chart, Heat, Line
from hvdtrain.report.page import Table
from hvdtrain.report.study import Section
from hvdtrain.report.text import MISSING
from hvdtrain.scaling.ends import Ends, between, both, low_high


def grid_section(groups: Sequence[Group], first_rate: float, epochs: int) -> Section:
    """The lowest validation loss of each rate and batch, with the line of linear scaling."""
    batches = sorted({group.batch for group in groups})
    rates = sorted({group.rate for group in groups})
    by_place = {(group.rate, group.batch): group for group in groups}
    values: list[list[float | None]] = []
    rows = []
    for rate in rates:
        found = [by_place.get((rate, batch)) for batch in batches]
        losses = [group.of("best_loss") if group else None for group in found]
        values.append([None if loss is None else loss.mean for loss in losses])
        rows.append([f"{rate:g}", *(_cell(group, epochs) for group in found)])
    line = [
        (float(x), y)
        for x, batch in enumerate(batches)
        if (y := _row_of(first_rate * batch / batches[0], rates)) is not None
    ]
    heat = Heat([f"{rate:g}" for rate in rates], [str(batch) for batch in batches], values, line)
    chart = Chart(
        *("rate-batch", "lowest validation loss", "batch (images)", "learning rate"),
        "dashed: the rate grows with the batch",
        heat=heat,
    )
    best = [next((g for g in best_rates(groups) if g.batch == b), None) for b in batches]
    rows.append(["best rate", *(MISSING if one is None else f"{one.rate:g}" for one in best)])
    head = ["rate", *(f"batch {batch}" for batch in batches)]
    text = (
        "Lowest validation loss, mean ± standard deviation over seeds, and the epochs that were trained "
        f"where they are fewer than {epochs}: the halving, or patience, had ended there."
    )
    table = Table(head, rows, list(range(1, len(head))))
    return Section("Rate and batch", text, table, (chart,))


def _cell(group: Group | None, epochs: int) -> str:
    if group is None:
        return MISSING
    loss, trained = group.of("best_loss"), group.of("epochs")
    if loss is None or trained is None:
        return "diverged"
    after = "" if trained.mean >= epochs else f" ({trained.mean:.3g} epochs)"
    return f"{loss.text()}{after}"


def best_rates(groups: Sequence[Group]) -> list[Group]:
    """Of each batch the group with the lowest mean validation loss; all if none has one."""
    found: dict[int, tuple[float, Group]] = {}
    for group in groups:
        loss = group.of("best_loss")
        if loss and loss.mean < found.get(group.batch, (math.inf,))[0]:
            found[group.batch] = loss.mean, group
    return [found[batch][1] for batch in sorted(found)] or list(groups)


def _row_of(rate: float, rates: Sequence[float]) -> float | None:
    """The place of a rate between the rows, by its logarithm; None outside of them."""
    if len(rates) < 2 or not rates[0] * 0.99 <= rate <= rates[-1] * 1.01:
        return 0.0 if len(rates) == 1 and math.isclose(rate, rates[0]) else None
    for row, (low, high) in enumerate(itertools.pairwise(rates)):
        if rate <= high * 1.01:
            return row + max(0.0, math.log(rate / low) / math.log(high / low))
    return float(len(rates) - 1)


def _mean(all_: Sequence[Ends[float]]) -> Ends[float]:
    return both(lambda end: sum(each.at(end) for each in all_) / len(all_))


def parallel_section(groups: Sequence[Group], predicted: Mapping[str, Ends[float]]) -> Section:
    """Seconds per epoch by the number of ranks, measured and predicted. `predicted`: by member."""
    batches = sorted({group.batch for group in groups})
    rows, lines = [], []
    for color, batch in enumerate(batches):
        found = sorted((g for g in groups if g.batch == batch), key=lambda g: g.ranks)
        single = found[0].of("seconds_per_epoch")
        measured: list[tuple[float, float, float]] = []
        expected: list[tuple[float, float, float, float]] = []
        for group in found:
            seconds, loss = group.of("seconds_per_epoch"), group.of("best_loss")
            to_best = group.of("seconds_to_best")
            known = [predicted[r.name] for r in group.results if r.name in predicted]
            forecast = _mean(known) if known else None
            if seconds:
                measured.append((float(group.ranks), seconds.mean, seconds.deviation or 0.0))
            if forecast is not None:
                expected.append((float(group.ranks), forecast.slow, *low_high(forecast)))
            speedup = single.mean / seconds.mean if single and seconds else None
            rows.append(
                [
                    *(str(batch), str(group.ranks), seconds.text(3) if seconds else MISSING),
                    MISSING if forecast is None else between(forecast, ".3g"),
                    MISSING if speedup is None else f"{speedup:.2f}",
                    *(each.text(4) if each else MISSING for each in (to_best, loss)),
                ]
            )
        if measured:
            xs, ys, d = map(list, zip(*measured, strict=True))
            low = [y - e for y, e in zip(ys, d, strict=True)]
            high = [y + e for y, e in zip(ys, d, strict=True)]
            lines.append(Line(f"batch {batch}", xs, ys, low, high, color))
        if expected:
            xs, ys, low, high = map(list, zip(*expected, strict=True))
            lines.append(Line(f"batch {batch}, predicted", xs, ys, low, high, color, 2))
    chart = Chart(
        *("seconds-by-ranks", "seconds per epoch", "ranks", "seconds of training"),
        "dash-dotted: predicted, the slow end; its band: down to the fast end",
        lines=tuple(lines),
    )
    head = [
        *("batch", "ranks", "seconds per epoch", "predicted", "speed-up"),
        *("seconds to lowest loss", "lowest validation loss"),
    ]
    text = (
        "All ranks on one host. Predicted: by the model of `hvdtrain scaling predict`, from the speed of a "
        "single worker that each run measured at its start, from the lowest to the highest that its assumptions "
        "allow."
    )
    return Section("Ranks", text, Table(head, rows, list(range(1, len(head)))), (chart,))
