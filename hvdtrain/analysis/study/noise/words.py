"""What `hvdtrain study noise-scale` says: sentences, tables of text, and what they assume."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from hvdtrain.analysis.study.noise.answers import Found, Results
from hvdtrain.analysis.study.noise.nodes import SMALLEST, Answer, Offer
from hvdtrain.analysis.study.noise.trade_off import TradeOff
from hvdtrain.report.text import MISSING, dollars, duration
from hvdtrain.scaling.ends import Ends, between, low_high
from hvdtrain.scaling.tables import late_ranks_allow

SIMPLE = (
    "The critical batch is taken to be the simple noise scale tr Σ / |G|², which ignores the Hessian, as if the "
    "curvature were the same in all directions: right within a small factor, not to the digit (McCandlish et al. "
    "2018)."
)
EQUIVALENT = (
    "At each batch the learning rate is scaled to be the best for it, so that the training stays equivalent; at an "
    "unscaled rate a larger batch saves less. The loss is the training loss: whether a larger batch also "
    "generalises as well is another question."
)
RECORDED = (
    "Each update of the run counts with the noise scale that was recorded then, averaged over the last 50 "
    "measurements."
)
MEASURED = (
    "One checkpoint stands for the whole training, but the noise scale usually grows as the loss falls. Gradients "
    "are those of training: the weights that are trained, not their averages, in training mode, with the images "
    "augmented as in the checkpoint's epoch."
)
PREDICTED = (
    "Times are those of the training steps alone, by the model of hvdtrain scaling, each from the lowest to the "
    "highest that its assumptions allow; batches and nodes are chosen by the slow end. Waiting for images is not "
    "counted. A rank gets at most as many images in a pass as the run gave it, more are accumulated; and at least "
    "a quarter of them, since small passes are less well known."
)
assert SMALLEST == 4


def assumptions(results: Results) -> list[str]:
    """What the results rest on."""
    lines = [SIMPLE, EQUIVALENT]
    if any(found.recorded for found in results.found):
        lines.append(RECORDED)
    if any(found.measured for found in results.found):
        lines.append(MEASURED)
    if any(found.answers for found in results.found):
        lines.append(PREDICTED)
    return lines


def sentences(found: Found) -> list[str]:
    """The noise scale, and where the run's batch stands."""
    if found.recorded is not None:
        first, *_, last = [part for part in found.recorded.parts() if "quarter" in part.name]
        whole = found.recorded.parts()[0]
        lines = [
            f"noise scale {whole.mean:,.0f} ± {whole.deviation:,.0f} images over the training: "
            f"{first.mean:,.0f} in {first.name}, {last.mean:,.0f} in {last.name}"
        ]
    else:
        lines = list(_measured(found.measured))
    return lines if found.trade_off is None else [*lines, standing(found.trade_off)]


def _measured(one: dict[str, Any]) -> Iterator[str]:
    yield (
        f"{one['images']:,} images in {one['batches']} batches, loss {one['loss']:.4f}: "
        f"tr Σ {one['trace']:.4g} ± {one['trace_error']:.2g}, "
        f"|G|² {one['square']:.4g} ± {one['square_error']:.2g}"
    )
    if one["resolved"]:
        yield (
            f"noise scale {one['scale']:,.0f} images (95 %: {one['low']:,.0f} to {one['high']:,.0f})"
        )
        return
    bound = "not to be seen" if one["low"] is None else f"above {one['low']:,.0f} images (95 %)"
    near = "" if one["scale"] is None else f", perhaps {one['scale']:,.0f}"
    yield f"noise scale {bound}{near}: {_why(one)}"


def _why(one: dict[str, Any]) -> str:
    """What to do where there is no upper bound."""
    hidden = f"the noise of {one['images']:,} images hides their gradient"
    if one["images"] >= one["images_of_split"]:
        return f"{hidden}, and there are no more: no trade-off can be given here"
    wanted = min(int(one["wanted"]), int(one["images_of_split"]))
    return f"{hidden}: take about --images {wanted}"


def standing(trade_off: TradeOff) -> str:
    """Where the batch of the run stands to the critical one, and what twice and half of it would need."""
    batch, critical = trade_off.batch, trade_off.critical
    ratio = batch / critical
    text = f"critical batch about {critical:,.0f} images; the run's batch, {batch:,.0f}, is {ratio:.2g} of it"
    doubled = _against(trade_off, 2 * batch, "twice as large")
    if ratio < 0.5:
        return f"{text}: larger batches pay: one {doubled}"
    if ratio <= 2:
        return f"{text}: close to it: a batch {doubled}"
    halved = _against(trade_off, batch / 2, "half as large")
    return f"{text}: computation is wasted: a batch {halved}"


def _against(trade_off: TradeOff, batch: float, name: str) -> str:
    updates = trade_off.updates_with(batch) / trade_off.updates
    images = updates * batch / trade_off.batch
    return f"{name} needs {updates:.0%} of the updates and {images:.0%} of the images"


def verdict(answer: Answer) -> str:
    """One sentence: which batch on how many nodes."""
    best, own = answer.advised, answer.own
    faster = between(answer.faster(best), ".2g", "×")
    if answer.bounds is not None:
        faster += f" ({answer.bounds[0]:.2g} to {answer.bounds[1]:.2g})"
    return (
        f"{answer.link_gbit:g} Gbit/s: batch {best.batch:,} on {_of(best.nodes)}: {faster} as fast as now "
        f"(batch {own.batch:,} on {_of(own.nodes)}) for {between(answer.dearer(best), '.2g', '×')} the node-hours; "
        f"{_end(answer)}"
    )


def late_ranks(answer: Answer) -> str:
    """What waiting for the slowest rank leaves, whatever the link and the batch."""
    ranks = answer.fastest[-1].ranks
    allowed = between(late_ranks_allow(ranks, answer.sigma), ".1f", "%", 100)
    spread = between(answer.sigma, ".3g", "%", 100)
    return (
        f"late ranks: where step times spread by {spread} (--straggler), {ranks:,} ranks reach at most {allowed} "
        "efficiency, whatever the link and the batch"
    )


def _of(nodes: int) -> str:
    return "1 node" if nodes == 1 else f"{nodes} nodes"


def _end(answer: Answer) -> str:
    """Where more nodes stop paying."""
    place, least = answer.fastest.index(answer.advised), f"{answer.least_saving:.0%}"
    if place + 1 == len(answer.fastest):
        return f"{_of(answer.advised.nodes)} are the most that were asked for"
    saved, more = answer.saved[place + 1] or 0.0, answer.fastest[place + 1].nodes
    share = f"{saved:.0%}" if f"{saved:.0%}" != least else f"{saved:.1%}"
    change = f"save {share} of the time, less than {least}" if saved >= 0.005 else "save nothing"
    return f"more nodes stop paying after {answer.advised.nodes}: {more} {change}"


def _range(seconds: Ends[float]) -> str:
    """A duration, from–to."""
    return "–".join(dict.fromkeys(map(duration, low_high(seconds))))


def speed(found: Found) -> str:
    """Where the speed of a worker is from, and what the prediction says of the run as it is."""
    text = f"one worker: {found.speed}"
    if found.recorded is None:
        return text
    measured = found.recorded.seconds
    times = dict.fromkeys(_range(answer.own.seconds) for answer in found.answers)
    return (
        f"{text}; the run as it is: {' or '.join(times)} predicted, {duration(measured)} measured"
    )


def parts_table(found: Found) -> tuple[list[str], list[list[str]]]:
    """The recorded noise scale by quarter and phase."""
    assert found.recorded is not None
    head = [
        "part",
        "updates",
        "noise scale",
        "lowest",
        "highest",
        "batch",
        "batch ÷ noise",
        "known",
    ]
    rows = [
        [
            *(part.name, f"{part.updates:,.0f}", f"{part.mean:,.0f} ± {part.deviation:,.0f}"),
            *(f"{part.low:,.0f}", f"{part.high:,.0f}", f"{part.batch:,.0f}"),
            *(f"{part.batch_over_noise:.3g}", f"{part.known:.0%}"),
        ]
        for part in found.recorded.parts()
    ]
    return head, rows


def trade_off_table(trade_off: TradeOff) -> tuple[list[str], list[list[str]]]:
    """Updates and images of each batch."""
    head = ["batch", "updates ÷ fewest", "images ÷ fewest", "updates ÷ now", "images ÷ now"]
    rows = [
        [
            f"{row['batch']:,.0f}" + (" (now)" if row["own"] else ""),
            *(f"{row['updates_over_fewest']:.3g}", f"{row['images_over_fewest']:.3g}"),
            *(f"{row['updates_over_own']:.3g}", f"{row['images_over_own']:.3g}"),
        ]
        for row in trade_off.rows()
    ]
    return head, rows


def nodes_table(answer: Answer, price: float | None) -> tuple[list[str], list[list[str]]]:
    """The fastest batch on each number of nodes, and beside it the run's own images per rank."""
    head = ["nodes", "ranks", "batch", "per rank", "time", "faster", "node-hours ×", "saved"]
    head += ["efficiency", *(["cost"] if price is not None else []), "same per rank", "its time"]
    rows = [_row("now", answer.own, answer, price, None, None)]
    for offer, same, saved in zip(answer.fastest, answer.same_share, answer.saved, strict=True):
        rows.append(_row(str(offer.nodes), offer, answer, price, saved, same))
    rows.append(
        _row(f"cheapest: {answer.cheapest.nodes}", answer.cheapest, answer, price, None, None)
    )
    return head, rows


def _row(
    name: str,
    offer: Offer,
    answer: Answer,
    price: float | None,
    saved: float | None,
    same: Offer | None,
) -> list[str]:
    share = f"{offer.batch_per_worker}"
    if offer.accumulate > 1:
        share = f"{offer.accumulate} × {share}"
    costs = () if price is None else [price * hours for hours in low_high(offer.node_hours)]
    cost = ["–".join(dict.fromkeys(map(dollars, costs)))] if costs else []
    return [
        *(name, str(offer.ranks), f"{offer.batch:,}", share, _range(offer.seconds)),
        between(answer.faster(offer), ".2f", "×"),
        between(answer.dearer(offer), ".2f"),
        MISSING if saved is None else f"{saved:.0%}",
        between(offer.efficiency, ".0f", "%", 100),
        *cost,
        *([MISSING] * 2 if same is None else [f"{same.batch:,}", _range(same.seconds)]),
    ]
