"""Faults in real training jobs: `make chaos`, or `python -m tests.chaos --cases N --seed S`."""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path

from tests.chaos import table
from tests.chaos.cases import by_torch, draw
from tests.chaos.course import Chaos, Result


def main(arguments: list[str]) -> int:
    """1 if a case was wrong or did not end."""
    parser = argparse.ArgumentParser(prog="make chaos", description=__doc__)
    parser.add_argument("--cases", type=int, default=30, help="how many, with seeds in a row")
    parser.add_argument("--seed", type=int, default=1, help="of the first case")
    parser.add_argument("--only", type=int, metavar="SEED", help="this case alone")
    parser.add_argument("--ranks", type=int, default=4, choices=(2, 4), help="at most so many")
    parser.add_argument(
        "--torch",
        action="store_true",
        help="torchrun in place of mpirun and launch; cases with neither are left out",
    )
    parser.add_argument("--out", type=Path, help="CSV file for the results")
    parser.add_argument("--keep", action="store_true", help="keep the folders of the cases")
    known = parser.parse_args(arguments)
    first = known.seed if known.only is None else known.only
    seeds = range(first, first + (known.cases if known.only is None else 1))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the jobs are ended on the way out
    chaos, results = Chaos(), list[Result]()
    try:
        for seed in seeds:
            case = drawn = draw(seed, known.ranks)
            if known.torch and (case := by_torch(drawn)) == drawn:
                continue
            results.append(chaos.run(case))
            print(table.line(results[-1]), flush=True)
            if known.out:
                table.write(known.out, results)
    finally:
        failed = any(result.verdict in ("wrong", "hang") for result in results)
        chaos.close(keep=known.keep or failed)
    print(table.by_fault([table.row(result) for result in results]))
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
