"""Speed of hvdtrain's loader compared with the other loaders in `loader_peers.py`.

    python benchmarks/loader.py --images DIR

Every turn is a new process, bound to `--threads` cores. It starts one loader, takes 12 batches to
warm up, and then counts images and CPU time (user and system, of all its processes) for some
seconds. The loaders take turns, in every other round in reverse order. Figures are medians over
rounds. The last line is {"128": {name: images per second}, "224": {…}}.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import common
import psutil
import torch
from common import in_turn, median_ratio, print_machine, print_result, print_table
from loader_data import importable, prepare
from loader_peers import BATCH, NEEDS, ON_GPU, PEERS, Setting

SIZES = (128, 224)
PACKAGES = ("nvidia-dali-cuda130", "pillow", "webdataset", "ffcv", "turboloader")
_WARM_UP = 12  # batches


def turn(name: str, setting: Setting, seconds: float) -> dict[str, float]:
    """Run one loader in this process for `seconds`; returns images per second, CPU ms per image."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: setting.threads])
    torch.set_num_threads(1)
    batches = PEERS[name](setting)
    for _ in range(_WARM_UP):
        images = next(batches)
        assert images.dtype == torch.float32
        assert images.shape[1:] == (3, setting.size, setting.size)
        assert 0.5 < float(images.std()) < 2
    count, began, cpu = 0, time.perf_counter(), _cpu_s()
    while (passed := time.perf_counter() - began) < seconds:
        count += len(next(batches))
        if setting.device == "cuda":
            torch.cuda.synchronize()
    return {"images_per_s": count / passed, "cpu_ms": 1e3 * (_cpu_s() - cpu) / count}


def _cpu_s() -> float:
    """CPU seconds, user and system, of this process and of all its children."""
    own = psutil.Process()
    times = [process.cpu_times() for process in [own, *own.children(recursive=True)]]
    ended = times[0].children_user + times[0].children_system
    return float(sum(t.user + t.system for t in times) + ended)


def contestant(
    name: str, size: int, args: argparse.Namespace, work: Path, cpu_ms: list[float]
) -> Callable[[], float]:
    """Function that runs a turn in a new process, returns images/s and appends to `cpu_ms`."""
    command = [*shlex.split(args.prefix), sys.executable, __file__, "--turn", name]
    command += ["--images", str(work), "--sizes", str(size), "--threads", str(args.threads)]
    command += ["--device", args.device, "--seconds", str(args.seconds)]

    def run() -> float:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        lines = done.stdout.splitlines()
        if not lines:
            raise SystemExit(f"{name} at {size} px failed:\n{done.stderr[-2000:]}")
        result = json.loads(lines[-1])
        cpu_ms.append(result["cpu_ms"])
        return float(result["images_per_s"])

    return run


def available(device: str) -> list[str]:
    """Loaders that can run here; prints a line for each of the others."""
    names = []
    for name in PEERS if device == "cpu" else ON_GPU:
        if name in NEEDS and not importable(NEEDS[name]):
            print(f"skipped: {name}: {NEEDS[name]} cannot be imported")
        else:
            names.append(name)
    return names


def compare(args: argparse.Namespace, work: Path) -> dict[str, dict[str, float]]:
    """Measure all loaders at all sizes; prints tables, returns images per second."""
    result = {}
    names = [name for name in available(args.device) if not args.only or name in args.only]
    for size in args.sizes:
        cpu_ms: dict[str, list[float]] = {name: [] for name in names}
        turns = {name: contestant(name, size, args, work, cpu_ms[name]) for name in names}
        speeds = in_turn(turns, args.rounds)
        print_table(f"{size} px: images/s", speeds, digits=0)
        print_table(f"{size} px: CPU ms per image", cpu_ms, digits=3)
        _print_ratios(size, speeds, cpu_ms)
        result[str(size)] = {n: round(statistics.median(v), 1) for n, v in speeds.items()}
    return result


def _print_ratios(size: int, speeds: dict[str, list[float]], cpu: dict[str, list[float]]) -> None:
    for name in ("hvdtrain", "hvdtrain on packed copies"):
        for other, theirs in speeds.items():
            if name in speeds and not other.startswith("hvdtrain"):
                faster = median_ratio(speeds[name], theirs)
                cheaper = median_ratio(cpu[other], cpu[name])
                ratios = f"{faster:.2f}× images/s, {cheaper:.2f}× images per CPU second"
                print(f"{size} px  {name} / {other}: {ratios}")


def parse() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--images", type=Path, required=True, help="a folder of JPEGs")
    parser.add_argument("--quick", action="store_true", help="3 rounds of 1 s")
    parser.add_argument("--rounds", type=int, help="turns of each loader (default 5, quick 3)")
    parser.add_argument("--seconds", type=float, help="seconds per turn (default 3, quick 1)")
    parser.add_argument("--threads", type=int, default=2, help="cores, and threads or workers")
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="image sides, px")
    parser.add_argument("--most", type=int, default=2000, help="largest number of images to use")
    parser.add_argument("--only", nargs="+", help="measure only these loaders")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--prefix", default="", help="command to put before that of every turn")
    parser.add_argument("--turn", help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.rounds = args.rounds or (3 if args.quick else 5)
    args.seconds = args.seconds or (1.0 if args.quick else 3.0)
    return args


def main() -> None:
    """Parse the arguments, prepare the images, measure and print."""
    args = parse()
    if args.turn:
        setting = Setting(args.images, args.sizes[0], args.threads, args.device)
        print(json.dumps(turn(args.turn, setting, args.seconds)), flush=True)
        for worker in psutil.Process().children(recursive=True):
            worker.kill()
        os._exit(0)  # some loaders cannot be stopped in mid-epoch
    with tempfile.TemporaryDirectory(prefix="hvdtrain-benchmark-") as folder:
        count = prepare(args.images, Path(folder), args.most, args.threads)
        common.VERSIONS = ("torch", "numpy", *PACKAGES)
        print_machine()
        print(f"{count} images, batch {BATCH}, {args.threads} threads, {args.threads} cores")
        print(f"{args.rounds} rounds, {args.seconds:g} s per turn, {args.device}")
        result = compare(args, Path(folder))
    print_result(result)


if __name__ == "__main__":
    main()
