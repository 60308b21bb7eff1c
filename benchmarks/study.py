"""The batch-size study on cats and dogs, claim by claim beside the published one.

Trains what is not trained yet: stop it at any time, and start it again. `--data` has `train` and `test`, made as
docs/tutorial/batch-size-study.md says. The published figures are of another dataset of cats and dogs, and of a
network whose layers we do not know: compare directions, not numbers.
"""

from __future__ import annotations

import argparse
import math
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from common import print_machine, print_result

from hvdtrain.analysis.study.asked import Asked
from hvdtrain.analysis.study.study import Study
from hvdtrain.analysis.study.surfaces import Surfaces
from hvdtrain.analysis.study.table import Group, epoch_ratios, groups_of
from hvdtrain.config.load import load_config
from hvdtrain.launch.job import own_command

CONFIG = Path(__file__).parents[1] / "configs/cats_dogs_vgg.yaml"
HIGH_RATE = 0.08
Row = list[str]


def main() -> None:
    """Parse the arguments, train, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with train and test")
    parser.add_argument(
        "--output", type=Path, default=Path("studies"), help="folder of the studies"
    )
    parser.add_argument("--batches", default="32,64,128,256")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=200, help="at most, of each member")
    parser.add_argument("--patience", type=int, default=8, help="evaluations without a lower loss")
    parser.add_argument("--jobs", type=int, default=2, help="members that train at once")
    parser.add_argument("--hours", type=float, help="stop after this time")
    parser.add_argument("--images", type=int, default=1000, help="of the losses around the weights")
    parser.add_argument("--read", action="store_true", help="only print what there is")
    args = parser.parse_args()

    data = [f"data.train={args.data}/train", f"data.val={args.data}/test"]
    settings = [*data, f"phases.0.epochs={args.epochs}", f"train.patience={args.patience}"]
    batches = [int(word) for word in args.batches.split(",")]
    how = ["--seeds", str(args.seeds), "--jobs", str(args.jobs)]
    how += ["--hours", str(args.hours)] if args.hours is not None else []
    main_root, high_root = args.output / "batch-size", args.output / "high-rate"
    if not args.read:
        words = ["--batches", args.batches, "--scaling", "none,linear", "--output", str(main_root)]
        words += ["--images", str(args.images)]
        _study("batch-size", [*settings, *how, *words])
        words = ["--batches", str(batches[0]), "--rates", f"{HIGH_RATE:g}", "--no-halving"]
        _study("lr-batch", [*settings, *how, *words, "--output", str(high_root)])
    cfg = load_config(CONFIG, settings)
    asked = Asked("batch-size", tuple(batches), ("none", "linear"), args.seeds)
    groups = _groups(Study.of(main_root, asked, cfg), args.images)
    high = Asked("lr-batch", (batches[0],), seeds=args.seeds, rates=(HIGH_RATE,), halving=False)
    high_groups = _groups(Study.of(high_root, high, cfg)) if high_root.is_dir() else []
    chosen = _chosen(groups, batches)
    rows = [*_claims(chosen), *_sharp_rows(chosen), *_high_row([*high_groups, *groups])]
    print_machine()
    small, large = batches[0], batches[-1]
    names = [f"batch {small}", f"batch {large}", f"batch {large}, rate scaled"]
    for row in (["", *names, "published", "as published"], ["---"] * 6, *rows):
        print(f"| {' | '.join(row)} |")
    print_result({"rows": rows, "members": _members(groups)})


def _study(command: str, words: Sequence[str]) -> None:
    """Run `hvdtrain study`; ends this process as it ended if not all members were trained."""
    settings = [word for word in words if "=" in word]
    options = [word for word in words if "=" not in word]
    done = subprocess.run(
        [*own_command(), "study", command, str(CONFIG), *settings, *options], check=False
    )
    if done.returncode:
        sys.exit(done.returncode)


def _groups(study: Study, images: int | None = None) -> list[Group]:
    """With the sharpness on so many images, if it was measured."""
    trainer = study.trainer(1, print)
    results = study.results(trainer)
    if images is not None:
        folder, seed = study.folder, study.cfg.seed
        surfaces = Surfaces(folder, ("sharpness",), images, seed, study.asked.threads)
        found = surfaces.found(study.tasks(surfaces, trainer)).sharpness
        results = [replace(each, sharpness=found.get(each.name, {})) for each in results]
    return groups_of(results)


def _members(groups: Sequence[Group]) -> list[dict[str, Any]]:
    return [result.row() for group in groups for result in group.results]


def _chosen(groups: Sequence[Group], batches: Sequence[int]) -> list[Group]:
    """The smallest batch, the largest, and the largest with the rate scaled."""
    wanted = [(batches[0], "none"), (batches[-1], "none"), (batches[-1], "linear")]
    found = {(group.batch, group.scaling): group for group in groups}
    if missing := [key for key in wanted if key not in found]:
        sys.exit(f"study.py: no member of batch {missing[0][0]}, {missing[0][1]} has begun yet")
    return [found[key] for key in wanted]


def _claims(chosen: Sequence[Group]) -> list[Row]:
    """A row for each claim: the three groups, what was published, and whether the order is the same."""
    small, large, scaled = chosen
    lower: Callable[[float, float], bool] = lambda a, b: a < b  # noqa: E731
    higher: Callable[[float, float], bool] = lambda a, b: a > b  # noqa: E731
    rows = [
        _row(chosen, "lowest validation loss", "best_loss", "0.344, 0.395, 0.352", lower),
        _row(chosen, "epochs to it", "epochs_to_best", "more for the larger batch", lower),
        _row(chosen, "seconds per epoch", "seconds_per_epoch", "fewer for the larger", higher),
        _row(chosen, "distance from the start", "distance", "nearer for the larger", higher),
        _row(chosen, "distance in an epoch", "epoch_distance", "less for the larger", higher),
        _row(chosen, "median update", "update_norm", "3.3e-3, 1.5e-3", higher),
    ]
    half = [_loss_at(group, 0.25, chosen) for group in chosen]
    rows.insert(1, ["training loss at a quarter of the shortest run", *map(_text, half)])
    rows[1] += ["falls more slowly with the larger", _said(half[0], half[1], lower)]
    nearer = [
        a.mean > b.mean
        for name in small.layers
        if (a := small.of(f"layer:{name}")) and (b := large.of(f"layer:{name}"))
    ]
    if nearer:
        count = f"{sum(nearer)} of {len(nearer)} layers"
        same = "yes" if all(nearer) else "no"
        rows.append(["nearer in", "", count, "", "every layer", same])
    for name, group in (("", large), (", rate scaled", scaled)):
        ratios = epoch_ratios(small, group)
        if len(ratios) > 1:
            at = [ratios[0], ratios[len(ratios) // 2], ratios[-1]]
            text = " → ".join(f"{ratio:.3g}" for ratio in at)
            grows = "" if name else ("yes" if ratios[-1] > ratios[0] else "no")
            what = f"ratio of these distances, over the epochs{name}"
            cells = ["", "", text] if name else ["", text, ""]
            rows.append([what, *cells, "" if name else "grows", grows])
    return rows


def _row(
    chosen: Sequence[Group],
    what: str,
    key: str,
    published: str,
    first: Callable[[float, float], bool],
) -> Row:
    values = [group.of(key) for group in chosen]
    texts = ["–" if value is None else value.text() for value in values]
    means = [value.mean if value else None for value in values]
    return [what, *texts, published, _said(means[0], means[1], first)]


def _said(a: float | None, b: float | None, first: Callable[[float, float], bool]) -> str:
    return "–" if a is None or b is None else "yes" if first(a, b) else "no"


def _text(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"


def _loss_at(group: Group, share: float, chosen: Sequence[Group]) -> float | None:
    """Mean training loss of the epoch at that share of the shortest run of all."""
    curves = [r.curves["training loss"].values for g in chosen for r in g.results]
    epoch = int(share * min(map(len, curves)))
    own = [r.curves["training loss"].values for r in group.results]
    if not epoch:
        return None
    return sum(values[epoch - 1] for values in own) / len(own)


def _sharp_rows(chosen: Sequence[Group]) -> list[Row]:
    """The sharpness in the full space, one row for each ε."""
    lower: Callable[[float, float], bool] = lambda a, b: a < b  # noqa: E731
    published = "larger is sharper; 1.14 against 4–7 after scaling"
    return [
        _row(chosen, f"sharpness, ε {epsilon:g}", f"sharpness:{epsilon:g}", published, lower)
        for epsilon in chosen[0].epsilons
    ]


def _high_row(groups: Sequence[Group]) -> list[Row]:
    """The smallest and the largest batch that were trained at the high rate."""
    high = sorted((g for g in groups if math.isclose(g.rate, HIGH_RATE)), key=lambda g: g.batch)
    if len(high) < 2:
        return []
    small, large = high[0], high[-1]
    values = [group.of("best_loss") for group in (small, large)]
    texts = ["diverged" if value is None else value.text() for value in values]
    means = [float("inf") if value is None else value.mean for value in values]
    said = "yes" if means[1] < means[0] else "no"
    what = f"lowest validation loss at rate {HIGH_RATE:g}, batches {small.batch} and {large.batch}"
    return [[what, texts[0], "", texts[1], "the larger is lower", said]]


if __name__ == "__main__":
    main()
