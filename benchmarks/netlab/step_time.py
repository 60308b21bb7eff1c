"""Time of a step over a shaped link: hvdtrain with each engine, torch DDP (gloo), and plain Horovod.

    sudo -E python benchmarks/netlab/step_time.py [--quick]

Every host of the lab has one rank, which trains the parameters of a ResNet-50. Timed sleeps replace
the computation; the gradients are real and go over real TCP. Every step ends with a plain SGD
update. The contestants take turns, with each of `--compressions` that they have (DDP by torch's own hooks for
fp16 and PowerSGD), and mpirun starts new processes for every turn. Plain Horovod has DistributedOptimizer, its own fusion, and Open MPI's
defaults except mpi_yield_when_idle, because the hosts of a lab share cores. `--out` writes points
for `hvdtrain scaling compare`, `--plot` a picture. docs/explanation/ethernet.md has the figures.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.netlab.allreduce import launch
from benchmarks.netlab.contestants import COMPRESSIONS, PORT, RANK, ddp, horovod, timed
from benchmarks.netlab.lab import Lab, LabError
from benchmarks.netlab.stand_in import StandIn
from hvdtrain.comm.ranks import Comm
from hvdtrain.comm.start import init_comm
from hvdtrain.engine.build import choose_device
from hvdtrain.engine.compression.exchange import size_bytes
from hvdtrain.engine.reducer import Compression, Reducer
from hvdtrain.launch.links import LINK_GBIT
from hvdtrain.optim import UpdateByGroup
from hvdtrain.report.palette import DASHES, LINES

MODEL = "resnet50"
TRAINERS = tuple(COMPRESSIONS)
EXCHANGES = 5
"""Rounds in which the groups are exchanged without computation, for the predictor."""


def hvdtrain(
    model: StandIn, steps: int, compression: Compression, group_mb: float
) -> dict[str, Any]:
    """Seconds of each step with hvdtrain's reducer, and the figures that the predictor needs."""
    comm = init_comm(engine="torch" if "MASTER_PORT" in os.environ else "horovod")
    choose_device(comm)
    reducer = Reducer(
        model.parameters(),
        comm,
        compression=compression,
        rank=RANK,
        group_bytes=group_mb * 2**20,
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    update_group = UpdateByGroup(optimizer, [group.params for group in reducer.groups])
    x = torch.zeros(1, requires_grad=True)
    released = [0.0] * len(reducer.groups)
    for k, group in enumerate(reducer.groups):
        for p in group.params:
            p.register_post_accumulate_grad_hook(
                lambda _, k=k: released.__setitem__(k, time.perf_counter())
            )

    def step(*, communicate: bool = True) -> None:
        reducer.start_step(communicate=communicate)
        loss = model(x) * reducer.loss_scale
        reducer.start_backward()
        loss.backward()
        reducer.end_backward()
        reducer.finish(update_group)
        if not communicate:
            optimizer.step()

    computing, releases = [], []
    for _ in range(3):
        comm.sum_(torch.zeros(1), "start")
        began = time.perf_counter()
        step(communicate=False)
        computing.append(time.perf_counter() - began)
        releases.append([at - began for at in released])
    seconds = timed(step, steps)
    compute_s = statistics.median(computing)
    release_s = [statistics.median(each) for each in zip(*releases, strict=True)]
    sent = [group.exchange.step_bytes for group in reducer.groups]
    if compression == "powersgd":  # second sums follow the backward pass and all first ones
        first = [sum(map(size_bytes, group.exchange.offers().values())) for group in reducer.groups]
        second = [whole - part for whole, part in zip(sent, first, strict=True) if whole > part]
        sent, release_s = [*first, *second], [*release_s, *[compute_s] * len(second)]
        exchanged = sum_times(comm, sent)
    else:
        exchanged = exchange_times(comm, reducer)
    result = {
        "seconds": seconds,
        "groups": sent,
        "release_s": release_s,
        "compute_s": compute_s,
        "allreduce": exchanged,
    }
    comm.shutdown()
    return result


def exchange_times(comm: Comm, reducer: Reducer) -> list[dict[str, float]]:
    """Seconds of each group's exchange, conversions included, without computation.

    The gradients of the last step are exchanged again, one group after the other.
    """

    def exchange() -> list[float]:
        comm.sum_(torch.zeros(1), "start")
        times = [time.perf_counter()]
        reducer.finish(lambda _: times.append(time.perf_counter()))
        return [end - begin for begin, end in itertools.pairwise(times)]

    rounds = [exchange() for _ in range(EXCHANGES)]
    return [
        {"bytes": group.exchange.step_bytes, "seconds": statistics.median(seconds)}
        for group, seconds in zip(reducer.groups, zip(*rounds, strict=True), strict=True)
    ]


def sum_times(comm: Comm, sizes: list[int]) -> list[dict[str, float]]:
    """Seconds of a sum of each of these sizes in bytes, without computation."""
    found = []
    for size in sorted(set(sizes)):
        seconds = []
        for _ in range(EXCHANGES):
            comm.sum_(torch.zeros(1), "start")
            began = time.perf_counter()
            comm.sum_(torch.zeros(size // 4), f"size.{size}")
            seconds.append(time.perf_counter() - began)
        found.append({"bytes": size, "seconds": statistics.median(seconds)})
    return found


def work(trainer: str, args: argparse.Namespace) -> None:
    """Run one rank; rank 0 prints its result as JSON."""
    torch.set_num_threads(1)
    model, (steps, compression) = StandIn(MODEL, args.compute), (args.steps, args.compression)
    if trainer in ("DDP", "Horovod"):
        result = (ddp if trainer == "DDP" else horovod)(model, steps, compression)
    else:
        result = hvdtrain(model, steps, compression, args.group_mb)
    if os.environ["OMPI_COMM_WORLD_RANK"] == "0":
        print(json.dumps(result), flush=True)


def contest(lab: Lab, gbit: float, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure all contestants on this lab; returns one row for each.

    The rows of hvdtrain are points for the predictor.
    """
    names = [
        (t, c)
        for c in args.compressions.split(",")
        for t in args.trainers.split(",")
        if c in COMPRESSIONS[t]
    ]
    results: dict[tuple[str, str], list[dict[str, Any]]] = {name: [] for name in names}
    for number in range(args.runs):
        for trainer, compression in names if number % 2 == 0 else names[::-1]:
            command = [str(Path(__file__).resolve()), "--worker", trainer]
            command += ["--compression", compression, "--compute", str(args.compute)]
            command += ["--steps", str(args.steps), "--group-mb", str(args.group_mb)]
            env = {"OMPI_MCA_mpi_yield_when_idle": "1", "GLOO_SOCKET_IFNAME": lab.nics[0]}
            if trainer == "hvdtrain-torch":
                env |= {"MASTER_ADDR": lab.address(0), "MASTER_PORT": str(PORT)}
            env[LINK_GBIT] = f"{gbit:g}"  # as `hvdtrain launch` does with the speed of a real card
            env |= dict(each.split("=", 1) for each in args.env)
            results[trainer, compression].append(launch(lab, command, env))
    rows = []
    for (trainer, compression), runs in results.items():
        seconds = [s for run in runs for s in run.pop("seconds")]
        row = {"label": f"{trainer} {compression}", "trainer": trainer, "compression": compression}
        row |= {"hosts": len(lab.hosts), "ranks_per_host": 1, "link_gbit": gbit, "model": MODEL}
        rows.append(row | {"step_s": statistics.median(seconds)} | runs[-1])
        print(
            f"{len(lab.hosts)} hosts  {gbit:g} Gbit/s  {trainer:14}  {compression:8}  "
            f"{statistics.median(seconds):6.3f} s per step  ({min(seconds):.3f} to {max(seconds):.3f})",
            flush=True,
        )
    return rows


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Plot step time over hosts of every contestant, one panel per compression."""
    from matplotlib.figure import Figure

    compressions = list(dict.fromkeys(row["compression"] for row in rows))
    figure = Figure(figsize=(5 * len(compressions), 4), layout="constrained")
    fields = figure.subplots(1, len(compressions), squeeze=False, sharey=True)[0]
    for axes, compression in zip(fields, compressions, strict=True):
        mine = [row for row in rows if row["compression"] == compression]
        for number, trainer in enumerate(dict.fromkeys(row["trainer"] for row in rows)):
            points = [(r["hosts"], r["step_s"]) for r in mine if r["trainer"] == trainer]
            style = {"color": LINES[number], "linestyle": DASHES[number], "label": trainer}
            axes.plot(*zip(*points, strict=True), marker="o", **style)
        computing = [(r["hosts"], r["compute_s"]) for r in mine if r["trainer"] == "hvdtrain"]
        if computing:
            axes.plot(*zip(*computing, strict=True), "k:", label="computation only")
        gbit = mine[0]["link_gbit"]
        axes.set(
            title=f"{gbit:g} Gbit/s, compression {compression}", xlabel="hosts", ylim=(0, None)
        )
        axes.set_xticks(sorted({row["hosts"] for row in mine}))
    fields[0].set_ylabel("seconds per step")
    handles, labels = fields[-1].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    figure.savefig(path, dpi=100)


def main() -> None:
    """Parse the arguments, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="2 and 4 hosts, 1 run of 3 steps")
    parser.add_argument("--hosts", help="numbers of hosts (default 2,4,8; quick 2,4)")
    parser.add_argument("--gbit", type=float, default=1.0, help="Gbit/s of the links (default 1)")
    parser.add_argument("--compute", type=float, default=0.5, help="seconds of computing a step")
    parser.add_argument("--group-mb", type=float, default=16.0, help="comm.group_mb of hvdtrain")
    parser.add_argument("--runs", type=int, help="runs of each contestant (default 3, quick 1)")
    parser.add_argument("--steps", type=int, help="steps of a run (default 8, quick 3)")
    parser.add_argument("--trainers", default=",".join(TRAINERS), help="default: all")
    parser.add_argument(
        "--compressions", default="none,fp16", help="default none,fp16; also bf16, powersgd"
    )
    parser.add_argument("--out", type=Path, help="write all rows to this file as JSON")
    parser.add_argument("--env", action="append", default=[], help="NAME=VALUE for every rank")
    parser.add_argument("--plot", type=Path, help="write a plot to this file")
    parser.add_argument("--worker", choices=TRAINERS, help=argparse.SUPPRESS)
    parser.add_argument("--compression", help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.steps = args.steps or (3 if args.quick else 8)
    args.runs = args.runs or (1 if args.quick else 3)
    if args.worker:
        work(args.worker, args)
        return
    rows: list[dict[str, Any]] = []
    for hosts in map(int, (args.hosts or ("2,4" if args.quick else "2,4,8")).split(",")):
        with Lab(hosts, link_gbit=args.gbit) as lab:
            rows += contest(lab, args.gbit, args)
        if args.out:
            points = [dict(row) for row in rows if row["trainer"] == "hvdtrain"]
            for point in points:
                del point["trainer"]  # the label has it, and the format does not
            others = [row for row in rows if row["trainer"] != "hvdtrain"]
            report = {"points": points, "others": others}
            args.out.write_text(json.dumps(report, indent=1) + "\n")
    if args.plot:
        plot(rows, args.plot)
    times = {(r["hosts"], r["compression"], r["trainer"]): r["step_s"] for r in rows}
    keys = {"least_ratio": "hvdtrain", "least_ratio_torch_engine": "hvdtrain-torch"}
    ratios = {key: least_ratios(times, ours) for key, ours in keys.items()}
    print(json.dumps(ratios | {"load_average": round(os.getloadavg()[0], 1)}))


def least_ratios(times: dict[tuple[int, str, str], float], ours: str) -> dict[str, float]:
    """How many times as long the step of each other contestant takes as ours, at least."""
    faster: dict[str, float] = {}
    for (hosts, compression, trainer), seconds in times.items():
        if (own := times.get((hosts, compression, ours))) and trainer in ("DDP", "Horovod"):
            faster[trainer] = round(min(faster.get(trainer, 1e9), seconds / own), 3)
    return faster


if __name__ == "__main__":
    try:
        main()
    except LabError as error:
        sys.exit(str(error))
