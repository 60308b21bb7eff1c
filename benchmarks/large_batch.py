"""Tests of the large-batch recipes on real images: CIFAR-10 as JPEGs, small networks, real ranks.

There are five experiments. Each compares trainings of equally many epochs by `hvdtrain train`:

batch     8 times the batch size with linear scaling, with and without gradual warmup, and without
          scaling. Gradients are accumulated, so batch norm still sees the small batch.
warmup    32 times the batch size, the factor of Goyal et al., with and without warmup.
agc       a normalizer-free network at batch size 1024 and a high learning rate, with and without
          adaptive gradient clipping.
resize    growing image sizes against one size: accuracy and training time.
schedule  1cycle against step decay in few epochs.

    python benchmarks/large_batch.py --train DIR --val DIR [--only batch …] [--seeds 3]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common import print_machine, print_result

from hvdtrain.report.palette import DASHES, LINES

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CONFIG = """
name: large_batch
data:
  augment: pad_crop
  cache: ram
  val_crop_ratio: 1.0
  mean: [0.4914, 0.4822, 0.4465]
  std: [0.2470, 0.2435, 0.2616]
model: {name: resnet8_cifar}
optimizer: {weight_decay: 5e-4}
lr: {base: 0.1, base_batch: 128, warmup: none, schedule: cosine}
phases: [{epochs: 20, image_size: 16, batch_per_worker: 64}]
train: {precision: PRECISION, evaluate_every: 5, log_every: 40, noise_scale_every: 0}
metrics: {enabled: false}
checkpoint: {every_epochs: 1000}
"""
RATE = ["lr.base=0.3"]  # at batch size 128, where it is better than 0.1
LARGE = ["train.accumulate=8"]
WARMUP = ["lr.warmup=gradual", "lr.warmup_epochs=3"]
NF = ["model.name=nf_resnet11_cifar", "optimizer.weight_decay=2e-5", "phases.0.epochs=3"]
NF += ["phases.0.val_image_size=24"]
NF += [*LARGE, "lr.warmup=gradual", "lr.warmup_epochs=1"]
QUICK = ["model.name=resnet11_cifar", "lr.base=0.15", "lr.schedule=piecewise"]
SHAPE = "lr.points=[[0, 0], [2.5, 1], [10, 0]]"
FIXED = ["phases.0.epochs=10", "phases.0.image_size=32", "phases.0.val_image_size=32", SHAPE]
GROWING = [
    "phases=["
    "{epochs: 2, image_size: 16, batch_per_worker: 64, val_image_size: 24},"
    "{epochs: 4, image_size: 24, batch_per_worker: 64, val_image_size: 32},"
    "{epochs: 4, image_size: 32, batch_per_worker: 64}]",
    SHAPE,
]
RATES = (0.4, 3.2)
SHORT = ["phases.0.epochs=8", "lr.base=0.2"]
EXPERIMENTS: dict[str, dict[str, list[str]]] = {
    "batch": {
        "128": RATE,
        "1024, scaled, warmup": [*RATE, *LARGE, *WARMUP],
        "1024, scaled, no warmup": [*RATE, *LARGE],
        "1024, not scaled": [*RATE, *LARGE, "lr.scaling=none"],
    },
    "warmup": {
        "4096, warmup": ["train.accumulate=32", *WARMUP],
        "4096, no warmup": ["train.accumulate=32"],
    },
    "agc": {
        f"rate {rate:g}, {name}": [*NF, f"lr.base={rate / 8}", *option]
        for rate in RATES
        for name, option in (("AGC", ["optimizer.agc=0.02"]), ("no AGC", []))
    },
    "resize": {"32 px": [*QUICK, *FIXED], "16, 24, 32 px": [*QUICK, *GROWING]},
    "schedule": {
        "step decay": [*SHORT, "lr.schedule=step", "lr.milestones=[4, 6, 7]"],
        "1cycle": [*SHORT, "lr.schedule=onecycle", "lr.cycle_momentum=[0.85, 0.95]"],
    },
}


def train(args: argparse.Namespace, work: Path, options: list[str], seed: int) -> dict[str, Any]:
    """Run one training.

    Returns top1 (0-1, None if it diverged), training seconds, and (epoch, top1) of each evaluation.
    """
    config = work / "config.yaml"
    config.write_text(CONFIG.replace("PRECISION", args.precision))
    run_dir = work / "run"
    command = ["mpirun", "--oversubscribe", "-np", str(args.ranks), "hvdtrain", "train"]
    command += [str(config), f"data.train={args.train}", f"data.val={args.val}", f"seed={seed}"]
    command += [*options, "--run-dir", str(run_dir)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    events = [json.loads(line) for line in (run_dir / "events.jsonl").read_text().splitlines()]
    curve = [(e["epoch"], e["top1"]) for e in events if e["kind"] == "eval"]
    for path in sorted(run_dir.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    if "the loss is" in done.stderr:  # not finite
        return {"top1": None, "seconds": None, "curve": curve}
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    seconds = [e["train_seconds"] for e in events if e["kind"] == "end"]
    return {"top1": curve[-1][1], "seconds": seconds[-1], "curve": curve}


def run_experiment(args: argparse.Namespace, work: Path, name: str) -> dict[str, list[Any]]:
    """Run all trainings of one experiment, seed by seed; returns the results by training."""
    trainings: dict[str, list[Any]] = {key: [] for key in EXPERIMENTS[name]}
    for seed in range(args.first_seed, args.first_seed + args.seeds):
        for key, options in EXPERIMENTS[name].items():
            trainings[key].append(train(args, work, options + args.set, seed))
            result = trainings[key][-1]
            print(
                f"{name}: {key}: seed {seed}: {result['top1']} in {result['seconds']} s", flush=True
            )
    print_experiment(name, trainings)
    return trainings


def print_experiment(name: str, trainings: dict[str, list[Any]]) -> None:
    """Print median, lowest and highest top-1 in percent, and median training seconds."""
    print(f"\n| {name} | top-1, median (lowest-highest) | training s, median | diverged |")
    print("|---|---|---|---|")
    for key, results in trainings.items():
        good = [100 * r["top1"] for r in results if r["top1"] is not None]
        cells = ["-", "-"]
        if good:
            seconds = statistics.median(r["seconds"] for r in results if r["top1"] is not None)
            middle = statistics.median(good)
            cells = [f"{middle:.2f} ({min(good):.2f}-{max(good):.2f})", f"{seconds:.1f}"]
        print(f"| {key} | {cells[0]} | {cells[1]} | {len(results) - len(good)} of {len(results)} |")
    print(flush=True)


def plot(experiments: dict[str, dict[str, list[Any]]], path: Path) -> None:
    """Plot top-1 over epochs of every training, one panel per experiment."""
    draw(experiments).savefig(path, dpi=100)


def draw(experiments: dict[str, dict[str, list[Any]]]) -> Figure:
    """The figure of `plot`; each panel has its legend below it."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5 * len(experiments), 4.8), layout="constrained")
    for axes, (name, trainings) in zip(
        figure.subplots(1, len(experiments), squeeze=False)[0], experiments.items(), strict=True
    ):
        for number, (key, results) in enumerate(trainings.items()):
            style = {"color": LINES[number], "linestyle": DASHES[number], "lw": 1.2}
            for seed, result in enumerate(results):
                epochs, top1 = zip(*result["curve"], strict=True) if result["curve"] else ((), ())
                label = None if seed else key
                axes.plot(epochs, [100 * t for t in top1], label=label, **style)
        axes.set(title=name, xlabel="epoch", ylabel="top-1, %")
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2, frameon=False)
    return figure


def main() -> None:
    """Parse the arguments, train, print and plot."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--train", required=True, help="training images")
    parser.add_argument("--val", required=True, help="validation images")
    parser.add_argument("--only", nargs="+", choices=list(EXPERIMENTS), default=list(EXPERIMENTS))
    parser.add_argument("--quick", action="store_true", help="one seed: a third of the time")
    parser.add_argument("--seeds", type=int, help="number of seeds (default 3, quick 1)")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--precision", default="auto", help="train.precision")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="config settings")
    parser.add_argument("--plot", type=Path, help="write a picture to this file")
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    args = parser.parse_args()
    args.seeds = args.seeds or (1 if args.quick else 3)
    if os.geteuid() == 0:
        os.environ |= {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    print_machine()
    experiments: dict[str, dict[str, list[Any]]] = {}
    with tempfile.TemporaryDirectory() as work:
        for name in args.only:
            experiments[name] = run_experiment(args, Path(work), name)
    if args.plot:
        plot(experiments, args.plot)
    if args.json:
        args.json.write_text(json.dumps(experiments))
    top1 = {
        name: {
            key: statistics.median(r["top1"] if r["top1"] is not None else 0.0 for r in results)
            for key, results in trainings.items()
        }
        for name, trainings in experiments.items()
    }
    print_result(top1)


if __name__ == "__main__":
    main()
