"""Time of a training step on a CPU when glibc keeps freed memory, and when it does not.

    python benchmarks/allocator.py [--model resnet50 --image-size 128 --batch 16]

The two settings train one batch in memory and take turns; each turn is a new process.
`hvdtrain train` keeps freed memory (`hvdtrain/engine/allocator.py`). The last line is
{"ratio": median over rounds of kept / default, ...}.
"""

from __future__ import annotations

import argparse
import functools
import json
import resource
import statistics
import subprocess
import sys
import time

import torch
from common import in_turn, median_ratio, print_machine, print_result, print_table, random_batch
from torch.nn import functional

from hvdtrain.config.schema import Model
from hvdtrain.engine.allocator import keep_freed_memory
from hvdtrain.models import build_model

CLASSES = 1000
WARM = 3


def turn(args: argparse.Namespace) -> None:
    """Train in this process; print [median seconds per step, page faults per step, peak MB]."""
    if args.turn == "kept":
        keep_freed_memory()
    torch.manual_seed(0)
    model = build_model(Model(name=args.model), CLASSES).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    batch = random_batch(args.batch, args.image_size, CLASSES, channels_last=True)
    seconds = []
    faults = 0
    for number in range(WARM + args.steps):
        if number == WARM:
            faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        began = time.perf_counter()
        optimizer.zero_grad()
        functional.cross_entropy(model(batch.images), batch.labels).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        seconds.append(time.perf_counter() - began)
    used = resource.getrusage(resource.RUSAGE_SELF)
    step_s = statistics.median(seconds[WARM:])
    print(json.dumps([step_s, (used.ru_minflt - faults) / args.steps, used.ru_maxrss / 1024]))


def main() -> None:
    """Parse the arguments, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="resnet50")
    parser.add_argument("--image-size", type=int, default=128)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--turn", choices=("default", "kept"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.turn:
        turn(args)
        return
    memory: dict[str, list[tuple[float, float]]] = {"default": [], "kept": []}

    def run(name: str) -> float:
        command = [sys.executable, *sys.argv, "--turn", name]
        out = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        step_s, faults, megabytes = json.loads(out)
        memory[name].append((faults, megabytes))
        return float(step_s) * 1e3

    print_machine()
    contestants = {name: functools.partial(run, name) for name in memory}
    figures = in_turn(contestants, args.rounds)
    print_table("ms per step", figures)
    result: dict[str, object] = {
        "ratio": round(median_ratio(figures["kept"], figures["default"]), 3)
    }
    for name, rows in memory.items():
        faults, megabytes = (statistics.median(column) for column in zip(*rows, strict=True))
        result |= {f"{name}_faults_a_step": round(faults), f"{name}_peak_mb": round(megabytes)}
    print_result(result)


if __name__ == "__main__":
    main()
