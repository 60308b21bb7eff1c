"""Ingredients of the recipes on CIFAR-10 as JPEG files, each against the same base, over several seeds.

The base is a small residual net in bf16 on two ranks: SGD, cross entropy, a rate that rises and falls in straight
lines. Each ingredient changes only what the table says. Trains what is not trained yet: stop it at any time, and start
it again; a member that has ended is never trained again.

    python benchmarks/ingredients.py --data DIR [--dry-run] [--only mixup 1cycle …] [--seeds 3] [--minutes 60]

By default 20,000 of the training images, 15 epochs and three seeds: chosen so that eleven ingredients take about an
hour on two cores. More images or epochs make smaller differences visible.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from common import print_machine, print_result
from ingredients_table import HOW, Row, markdown, plain, tested

from hvdtrain.analysis.study.asked import Member
from hvdtrain.analysis.study.cost import costs
from hvdtrain.analysis.study.folder import Folder
from hvdtrain.analysis.study.processes import Processes
from hvdtrain.analysis.study.trainer import Trainer
from hvdtrain.config.load import parse_config
from hvdtrain.config.schema import Config
from hvdtrain.errors import ConfigError, HvdtrainError
from hvdtrain.paths import RunPaths
from hvdtrain.report.events import number, read_mapping

BASE = "base"
BATCH = 128
RATE = 0.3
START_S = 12.0
"""A member before its first step and after its last: launcher, interpreters, imports, reading the images."""
CONFIG = """
name: ingredients
data:
  augment: pad_crop
  cache: ram
  val_crop_ratio: 1.0
  mean: [0.4914, 0.4822, 0.4465]
  std: [0.2470, 0.2435, 0.2616]
model: {{name: {model}}}
optimizer: {{weight_decay: 5e-4}}
lr: {{base: {rate}, base_batch: {batch}, warmup: none, schedule: piecewise, points: {points}}}
phases: [{{epochs: {epochs}, image_size: 32, batch_per_worker: {share}}}]
train: {{precision: bf16, evaluate_every: {epochs}, log_every: 50, noise_scale_every: 0}}
metrics: {{enabled: false}}
comm: {{preflight: false}}
"""


def ingredients(epochs: int, share: int) -> dict[str, list[str]]:
    """Name → settings that differ from the base. `share`: images of a rank and update."""
    first, second = max(1, epochs // 6), max(1, epochs // 3)
    last = max(1, epochs - first - second)
    grown = ", ".join(
        f"{{epochs: {count}, image_size: {size}, batch_per_worker: {share}, val_image_size: 32}}"
        for count, size in ((first, 16), (second, 24), (last, 32))
    )
    steps = [round(epochs * part, 2) for part in (0.5, 0.75, 0.9)]
    cycle = ["lr.pct_start=0.25", "lr.div_factor=10", "lr.cycle_momentum=[0.85, 0.95]"]
    # The mean over 10 classes makes gradients ten times smaller: the same step and the same decay of it.
    tenfold = [f"lr.base={10 * RATE:g}", "optimizer.weight_decay=5e-5"]
    # Norms, biases and the classifier are SGD's, at the base's rate. 0.05 was best of 0.02, 0.05 and 0.1 in one run each.
    muon = ["optimizer.name=muon", "lr.base=0.05", "optimizer.momentum=0.95"]
    muon += ["optimizer.other_rate=6", "optimizer.classifier_rate=6", "optimizer.weight_decay=0.01"]
    return {
        BASE: [],
        "label smoothing": ["train.label_smoothing=0.1"],
        "mixup": ["train.mixup=0.2"],
        "binary cross-entropy": ["train.loss=binary_cross_entropy", *tenfold],
        "random erasing": ["data.random_erasing=0.25"],
        "EMA": ["train.ema_decay=0.99"],
        "1cycle": ["lr.schedule=onecycle", *cycle],
        "step": ["lr.schedule=step", f"lr.milestones={steps}"],
        "growing images": [f"phases=[{grown}]"],
        "Muon": muon,
        "compiled": ["train.compile=stages"],
    }


@dataclass(frozen=True)
class Members(Folder):
    """The files of the benchmark. `members.json` has the settings of all members, and those that diverged."""

    @property
    def study(self) -> Path:
        """What a study keeps in `study.json`."""
        return self.root / "members.json"

    def read(self) -> dict[str, Any]:
        """Its content; empty if there is none."""
        try:
            return dict(json.loads(self.study.read_bytes()))
        except FileNotFoundError:
            return {}


def config_of(args: argparse.Namespace) -> tuple[str, Config]:
    """The config that all members share, as text and resolved."""
    share, rest = divmod(BATCH, args.ranks)
    if rest:
        sys.exit(f"ingredients.py: --ranks: a batch of {BATCH} cannot be shared by {args.ranks}")
    points = [[0, 0.1], [args.epochs / 4, 1], [args.epochs, 0]]
    text = CONFIG.format(
        model=args.model, rate=RATE, batch=BATCH, points=points, epochs=args.epochs, share=share
    )
    sources = [f"data.{key}={part}" for key, part in images_of(args).items()]
    cfg = parse_config(text, "ingredients", sources)
    return yaml.safe_dump(cfg.model_dump(), sort_keys=False, allow_unicode=True), cfg


def images_of(args: argparse.Namespace) -> dict[str, Path]:
    """`train` and `val`: the folders, or lists of the first images of each class of them."""
    found: dict[str, Path] = {}
    for key, part, count in (("train", "train", args.images), ("val", "test", args.val_images)):
        folder = args.data / part
        if not folder.is_dir():
            sys.exit(f"ingredients.py: {folder}: no such folder; --data has train and test")
        found[key] = folder if count is None else args.output / f"{key}-{count}.csv"
        if count is not None and not found[key].exists():
            classes = sorted(path for path in folder.iterdir() if path.is_dir())
            args.output.mkdir(parents=True, exist_ok=True)
            with found[key].open("w", newline="") as file:
                rows = csv.writer(file)
                rows.writerow(["path", "label"])
                for of in classes:
                    chosen = sorted(of.iterdir())[: count // len(classes)]
                    rows.writerows([path.resolve(), of.name] for path in chosen)
    return found


def known(cfg: Config, settings: Sequence[str]) -> str:
    """Why this version cannot train with the settings; empty if it can."""
    try:
        parse_config(json.dumps(cfg.model_dump()), "ingredients", list(settings))
    except ConfigError as error:
        return str(error).splitlines()[0]
    return ""


def members_of(args: argparse.Namespace, cfg: Config) -> tuple[list[Member], dict[str, list[str]]]:
    """All members, seed after seed, so that an unfinished benchmark has a whole answer; and the ingredients."""
    wanted = {
        name: settings
        for name, settings in ingredients(args.epochs, BATCH // args.ranks).items()
        if name == BASE or not args.only or name in args.only
    }
    for name, settings in [*wanted.items()]:
        if why := known(cfg, settings):
            print(f"{name}: left out, this version has no such setting: {why}")
            del wanted[name]
    found = []
    for seed in range(args.seeds):
        for name, settings in wanted.items():
            called = f"{name.replace(' ', '-')}-s{seed}"
            own = (f"name={called}", f"seed={seed}", *settings)
            found.append(Member(called, BATCH, "none", RATE, seed, args.ranks, own))
    return found, wanted


def begin(folder: Members, text: str, members: Sequence[Member]) -> None:
    """Write what is asked for; end with one line if the folder has members of other settings."""
    before = folder.read()
    had = before.get("settings", {})
    other = [m.name for m in members if m.name in had and had[m.name] != list(m.settings)]
    if before and (before["config"] != text or other):
        what = f"{other[0]} was trained" if before["config"] == text else "it was begun"
        sys.exit(f"ingredients.py: {folder.root}: {what} with other settings: use another --output")
    folder.write(config=text, settings={**had, **{m.name: list(m.settings) for m in members}})
    folder.config.write_text(text, encoding="utf-8")


def rows_of(
    trainer: Trainer, members: Sequence[Member], wanted: Mapping[str, Sequence[str]]
) -> list[Row]:
    """One for each ingredient, the base first, with tests where there are two seeds or more."""
    diverged = trainer.folder.read().get("diverged", {})
    found = []
    for name, settings in wanted.items():
        own = [m for m in members if m.name.rpartition("-s")[0] == name.replace(" ", "-")]
        ended = [read_mapping(RunPaths(trainer.folder.run(m.name)).summary) for m in own]
        top1, loss, seconds = (
            [value for each in ended if (value := number(each, key)) is not None]
            for key in ("top1", "loss", "train_seconds")
        )
        bad = sum(member.name in diverged for member in own)
        percent = [100 * value for value in top1]
        found.append(Row(name, shown(settings), percent, loss, seconds, bad))
    return tested(found)


def shown(settings: Sequence[str]) -> str:
    """Settings as text; of phases the sizes and epochs."""
    words = []
    for setting in settings:
        key, _, value = setting.partition("=")
        if key == "phases":
            phases = yaml.safe_load(value)
            value = ", ".join(f"{phase['epochs']} × {phase['image_size']} px" for phase in phases)
        words.append(f"{key}={value}")
    return " ".join(words)


def main() -> None:
    """Parse the arguments, train what is missing, print and write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--data", type=Path, required=True, help="folder with train and test")
    add("--output", type=Path, default=Path("ingredients"), help="folder of runs and tables")
    add("--only", nargs="+", choices=list(ingredients(12, 64)), metavar="NAME", help="and the base")
    add("--seeds", type=int, default=3)
    add("--epochs", type=int, default=15)
    add("--images", type=int, default=20_000, help="to train on, as many of each class")
    add("--val-images", type=int, help="to evaluate on (default: all)")
    add("--model", default="resnet8_cifar")
    add("--ranks", type=int, default=2)
    add("--minutes", type=float, default=60, help="stop then; the same command goes on")
    add("--dry-run", action="store_true", help="say what would be trained, and what it costs")
    args = parser.parse_args()
    if os.geteuid() == 0:
        os.environ |= {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    try:
        run(args)
    except HvdtrainError as error:
        sys.exit(f"ingredients.py: {error}")


def run(args: argparse.Namespace) -> None:
    """All that `main` does after the arguments."""
    text, cfg = config_of(args)
    members, wanted = members_of(args, cfg)
    folder = Members(args.output)
    end = time.monotonic() + 60 * args.minutes
    trainer = Trainer(folder, Processes(1, until=lambda: time.monotonic() >= end), print)
    if args.dry_run:
        price(args, cfg, members, trainer)
        return
    begin(folder, text, members)
    outcome = trainer.train(members)
    rows = rows_of(trainer, members, wanted)
    left = [m.name for m in members if not trainer.finished(m)]
    print_machine()
    table = markdown(rows)
    print(f"{table}\n\n{HOW}")
    if left:
        print(f"not trained: {', '.join(left)}; the same command goes on")
    result = {"config": cfg.model_dump(), "how": HOW, "rows": [plain(row) for row in rows]}
    (args.output / "ingredients.md").write_text(f"{table}\n\n{HOW}\n", encoding="utf-8")
    (args.output / "ingredients.json").write_text(json.dumps(result, indent=1), encoding="utf-8")
    print_result({row.name: [round(value, 2) for value in row.top1] for row in rows})
    sys.exit(1 if outcome.failed else 0)


def price(args: argparse.Namespace, cfg: Config, members: list[Member], trainer: Trainer) -> None:
    """Print each member with its updates, and the time that all take."""
    table = costs(cfg, members, counted(cfg), trainer)
    for cost in table:
        said = "trained" if cost.finished else f"about {cost.seconds or 0:.0f} s"
        print(f"{cost.member.name:<28} {cost.updates:>6} updates  {said}")
    left = [cost for cost in table if not cost.finished]
    seconds = sum((cost.seconds or 0.0) + START_S for cost in left)
    print(
        f"{len(left)} of {len(table)} members are left: about {seconds / 60:.0f} minutes, "
        f"{START_S:.0f} s of them for each start; --minutes {args.minutes:g}"
    )


def counted(cfg: Config) -> int:
    """Training images."""
    from hvdtrain.plan.images import num_images

    count = num_images(cfg)
    assert count is not None
    return count


if __name__ == "__main__":
    main()
