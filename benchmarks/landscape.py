"""How much faster ranks draw a landscape together than one of them alone.

Start it under mpirun with the directory of a run. In each round one rank evaluates all points of a
plane while the others wait, and then all ranks share the same points; each has one compute thread.
Times are of the whole study but for its picture: reading the checkpoint and the images, and all points.
The CPU time of the busiest rank is compared as well: other programs on the machine hardly change it.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

import numpy as np
import torch
from common import in_turn, median_ratio, print_machine, print_result, print_table

from hvdtrain.analysis.study.images import Choice
from hvdtrain.analysis.study.landscape import Grid, study_landscape
from hvdtrain.analysis.study.results import Request
from hvdtrain.comm.ranks import Solo
from hvdtrain.comm.start import init_comm


def main() -> None:
    """Parse the arguments, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("run", type=Path, help="run directory or checkpoint")
    parser.add_argument("--points", type=int, default=51, help="along each of two directions")
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()

    os.environ.setdefault("HOROVOD_STALL_CHECK_TIME_SECONDS", "3600")  # the others wait for one
    comm = init_comm()
    losses: dict[str, list[list[float]]] = {}
    cpu: dict[str, list[float]] = {"alone": [], "together": []}

    def study(name: str) -> float:
        comm.sum_(torch.zeros(1), "start")
        began, used = time.perf_counter(), time.process_time()
        if name == "together" or comm.rank == 0:
            choice = Choice(images=args.images, batch=args.images)
            request = Request([args.run], ["train.compute_threads=1"], choice)
            group = comm if name == "together" else Solo()
            found = study_landscape(request, group, Grid(points=args.points))
            losses[name] = found.checkpoints[0]["loss"]
        own = torch.tensor([time.process_time() - used], dtype=torch.float64)
        cpu[name].append(float(comm.gather(own, "end").max()))
        return time.perf_counter() - began

    contestants = {name: (lambda name=name: study(name)) for name in ("alone", "together")}
    seconds = in_turn(contestants, args.rounds)
    if comm.rank == 0:
        print(f"{args.points} × {args.points} points of {args.images} images, {comm.size} ranks")
        print_machine()
        print_table("seconds", seconds)
        print_table("CPU seconds of the busiest rank", cpu)
        apart = np.abs(np.subtract(losses["alone"], losses["together"])).max()
        speedup = median_ratio(seconds["alone"], seconds["together"])
        less = median_ratio(cpu["alone"], cpu["together"])
        print_result(
            {
                "ranks": comm.size,
                "speedup": round(speedup, 3),
                "cpu_speedup": round(less, 3),
                "largest_difference": float(apart),
            }
        )
    comm.shutdown()


if __name__ == "__main__":
    main()
