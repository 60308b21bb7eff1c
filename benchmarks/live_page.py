"""Time that a browser needs for one update of the whole live page, by number of ranks.

Headless Chromium opens the page of a simulated run after 400 reports. The benchmark times all of
an update except its request: texts, plots, the strip with one cell per rank, and their layout. The
page updates every two seconds. An update of 50 ms, above which browsers call it a long task, would
take 2.5 % of one core.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import urllib.request
from pathlib import Path

from common import print_machine, print_result, print_table

sys.path.insert(0, str(Path(__file__).parent.parent))
from tests.browser import CHROMIUM, Tab, opened
from tests.live_run import FakeRun

RANKS = (4, 64, 256)
REPORTS = 400
TIMED = """(() => { const began = performance.now(); show(seen); document.body.offsetHeight;
    return performance.now() - began; })()"""
"""JavaScript: one update with its layout, in milliseconds."""


def main() -> None:
    """Parse the arguments, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="10 updates instead of 50")
    updates = 10 if parser.parse_args().quick else 50
    if CHROMIUM is None:
        sys.exit("chromium is not in PATH; python3 deploy/test_tools.py installs it")
    runs = {ranks: FakeRun(ranks) for ranks in RANKS}
    times: dict[str, list[float]] = {f"{ranks} ranks": [] for ranks in RANKS}
    sizes = {}
    try:
        with (
            tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder,
            opened(Path(folder)) as tab,
        ):
            for ranks, run in runs.items():
                run.advance(REPORTS)
                times[f"{ranks} ranks"] = measure(tab, run, updates)
                with urllib.request.urlopen(f"{run.address}api/live", timeout=10) as answer:
                    sizes[ranks] = len(answer.read())
    finally:
        for run in runs.values():
            run.close()
    print_machine()
    print_table("ms per update", times, digits=2)
    medians = {ranks: statistics.median(times[f"{ranks} ranks"]) for ranks in RANKS}
    few, many = medians[RANKS[0]], medians[RANKS[-1]]
    print_result(
        {"ms_256_ranks": round(many, 2), "vs_4_ranks": round(many / few, 2), "answer_bytes": sizes}
    )


def measure(tab: Tab, run: FakeRun, updates: int) -> list[float]:
    """Milliseconds of each update, after 5 updates to warm up."""
    tab.size(1400, 1000)
    tab.open(run.address)
    tab.until(f"typeof seen !== 'undefined' && seen?.train?.step === {run.reports * 10}")
    return [float(tab.value(TIMED)) for _ in range(updates + 5)][5:]


if __name__ == "__main__":
    main()
