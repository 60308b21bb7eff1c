"""Time of an all-reduce between hosts of a lab, and the shortest time that iperf3's rate allows.

    sudo -E python benchmarks/netlab/allreduce.py [--quick]

The labs have 2, 4 and 8 hosts with one rank each. hvdtrain's settings with and without the ring for slow
links, and Open MPI's defaults, take turns, and every turn starts new processes. The share of a size is
(2 (N - 1) / N · size / rate of iperf3) / median time. docs/explanation/ethernet.md has the figures.
Needs root, iperf3, and the programs that netlab.py needs.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.netlab.lab import Lab, LabError
from hvdtrain.comm.start import init_comm
from hvdtrain.launch.links import SLOW_GBIT, SLOW_LINK_SETTINGS
from hvdtrain.scaling.ring import ring_seconds

NO_RING = {"OMPI_MCA_coll_tuned_use_dynamic_rules": "0"}
SETTINGS = {
    "ring": SLOW_LINK_SETTINGS,
    "no ring": NO_RING,
    "Open MPI": NO_RING
    | {"OMPI_MCA_btl_tcp_eager_limit": "65536", "OMPI_MCA_btl_tcp_max_send_size": "131072"},
}
"""Variables of each contestant; the sizes are Open MPI's defaults, `ompi_info --param btl tcp --level 9`."""


def worker(sizes_mb: list[float], rounds: int) -> None:
    """Run one rank; rank 0 prints the seconds of every round by size, as JSON."""
    torch.set_num_threads(1)
    comm = init_comm()
    seconds: dict[float, list[float]] = {}
    for mb in sizes_mb:
        tensor = torch.zeros(int(mb * 1e6 / 4))
        comm.sum_(tensor, f"allreduce.{mb}")
        for _ in range(rounds):
            comm.sum_(torch.zeros(1), "start")
            began = time.perf_counter()
            comm.sum_(tensor, f"allreduce.{mb}")
            seconds.setdefault(mb, []).append(time.perf_counter() - began)
    if comm.rank == 0:
        print(json.dumps([seconds[mb] for mb in sizes_mb]), flush=True)
    comm.shutdown()


def link_bytes_per_s(lab: Lab, seconds: int) -> float:
    """Rate of one link of the lab, measured by iperf3."""
    lab.check(1, "iperf3 -s -1 -D")
    time.sleep(0.2)
    end = json.loads(lab.check(0, f"iperf3 -c node1 -t {seconds} -J"))["end"]
    rate: float = end["sum_received"]["bits_per_second"]
    return rate / 8


def launch(lab: Lab, command: list[str], env: dict[str, str], *, ranks_per_host: int = 1) -> Any:
    """Run ranks of `command` on all hosts; returns the last line of output, parsed as JSON."""
    names = [word for name in env for word in ("-x", name)]
    mpirun = str(Path(sys.executable).parent / "mpirun")
    words = [mpirun if Path(mpirun).exists() else "mpirun", *lab.mpirun_arguments(ranks_per_host)]
    allow = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    out = lab.check(0, [*words, *names, sys.executable, *command], env=allow | env, timeout_s=900)
    return json.loads(out.strip().splitlines()[-1])


def main() -> None:
    """Parse the arguments, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="2 and 4 hosts at 0.5 Gbit/s, 1 run")
    parser.add_argument("--hosts", default=None, help="numbers of hosts (default 2,4,8; quick 2,4)")
    parser.add_argument(
        "--gbit",
        type=float,
        default=None,
        help="Gbit/s of a link (default 1; quick 0.5); 0: no limit",
    )
    parser.add_argument(
        "--runs", type=int, default=None, help="runs per setting (default 3; quick 1)"
    )
    parser.add_argument("--sizes", default="1,16,100", help="MB of the buffers (default 1,16,100)")
    parser.add_argument("--out", type=Path, help="write the figures to this file as JSON")
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        worker(list(map(float, args.worker[0].split(","))), int(args.worker[1]))
        return
    gbit = (0.5 if args.quick else 1.0) if args.gbit is None else args.gbit
    chosen = "ring" if 0 < gbit <= SLOW_GBIT else "no ring"
    runs = args.runs or (1 if args.quick else 3)
    sizes = [float(size) for size in args.sizes.split(",")]
    rows = []
    for hosts in map(int, (args.hosts or ("2,4" if args.quick else "2,4,8")).split(",")):
        with Lab(hosts, link_gbit=gbit or None) as lab:
            rate = link_bytes_per_s(lab, 2 if args.quick else 5)
            command = [str(Path(__file__).resolve()), "--worker", ",".join(map(str, sizes)), "3"]
            seconds: dict[str, list[list[float]]] = {name: [[] for _ in sizes] for name in SETTINGS}
            for number in range(runs):
                for name in list(seconds)[:: 1 if number % 2 == 0 else -1]:
                    measured = launch(lab, command, SETTINGS[name])
                    for values, new in zip(seconds[name], measured, strict=True):
                        values.extend(new)
        for name, by_size in seconds.items():
            row = {"hosts": hosts, "link_gbit": gbit, "iperf_mbit": rate * 8e-6, "settings": name}
            for mb, values in zip(sizes, by_size, strict=True):
                median = statistics.median(values)
                row[f"seconds_{mb:g}mb"] = median
                row[f"share_{mb:g}mb"] = ring_seconds(mb * 1e6, hosts, rate) / median
            rows.append(row)
            shares = "  ".join(f"{mb:g} MB {row[f'share_{mb:g}mb']:6.1%}" for mb in sizes)
            print(
                f"{hosts} hosts  {f'{gbit:g} Gbit/s' if gbit else 'no limit'}  iperf3 {rate * 8e-6:.0f} Mbit/s  {name:9}  {shares}",
                flush=True,
            )
    if args.out:
        args.out.write_text(json.dumps(rows, indent=1) + "\n")
    load = f"{os.getloadavg()[0]:.1f}"
    print(
        json.dumps(
            {
                "hvdtrain": chosen,
                f"share_{sizes[-1]:g}mb": min(
                    r[f"share_{sizes[-1]:g}mb"] for r in rows if r["settings"] == chosen
                ),
                "load_average": load,
            }
        )
    )


if __name__ == "__main__":
    try:
        main()
    except LabError as error:
        sys.exit(str(error))
