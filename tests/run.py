"""Run the tests in two passes: `python -m tests.run [OPTIONS OF PYTEST]`.

First those that may run beside each other, in as many processes as half the cores, at least two;
then those marked `serial`, one at a time. A last line counts both, and failures are repeated above
it.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree

NOTHING_TO_RUN = 5
"""pytest's exit code where the options select no test."""


@dataclass
class Counts:
    """Results of all passes so far."""

    by_outcome: dict[str, int] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    def add(self, junit: Path) -> None:
        """Take in the report of a pass; none was written if pytest did not start."""
        if not junit.is_file():
            return
        for case in ElementTree.parse(junit).iter("testcase"):
            outcomes = {child.tag for child in case} & {"failure", "error", "skipped"}
            outcome = min(outcomes, default="passed")  # an error in teardown is one, too
            outcome = {"failure": "failed", "error": "errors"}.get(outcome, outcome)
            self.by_outcome[outcome] = self.by_outcome.get(outcome, 0) + 1
            if outcome in ("failed", "errors"):
                place = filter(None, (case.get("classname"), case.get("name")))
                self.failures.append("::".join(place))

    def summary(self, seconds: float) -> str:
        """Like the last line of pytest."""
        order = ("failed", "passed", "skipped", "errors")
        parts = [f"{self.by_outcome[key]} {key}" for key in order if key in self.by_outcome]
        minutes, rest = divmod(round(seconds), 60)
        clock = f"{minutes // 60}:{minutes % 60:02}:{rest:02}"
        text = f" {', '.join(parts) or 'no tests ran'} in {seconds:.2f}s ({clock}) "
        return text.center(80, "=")


def passes(selection: str, cores: int) -> list[list[str]]:
    """Options of each pass, for tests that the mark expression `selection` selects."""
    selected = f"({selection}) and " if selection else ""
    workers = ["-n", str(max(2, cores // 2)), "--dist", "loadfile", "--no-loadscope-reorder"]
    return [[*workers, "-m", f"{selected}not serial"], ["-m", f"{selected}serial"]]


def main(arguments: list[str]) -> int:
    """The exit code of pytest: of the first pass that failed."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("-m", dest="selection", default="")
    known, options = parser.parse_known_args(arguments)
    # Ranks and test processes share the cores: a thread that waits must not spin.
    env = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE"}
    # Hundreds of processes are started: each would compile the whole program again.
    env.pop("PYTHONDONTWRITEBYTECODE", None)
    began, counts, codes = time.monotonic(), Counts(), []
    with tempfile.TemporaryDirectory() as folder:
        junit = Path(folder) / "junit.xml"
        for selected in passes(known.selection, len(os.sched_getaffinity(0))):
            command = [sys.executable, "-m", "pytest", f"--junit-xml={junit}", *selected, *options]
            junit.unlink(missing_ok=True)
            codes.append(subprocess.run(command, env=env, check=False).returncode)
            counts.add(junit)
            if codes[-1] not in (0, 1, NOTHING_TO_RUN) or (codes[-1] and "-x" in options):
                break  # interrupted, wrong use, or asked to stop
    for name in counts.failures:
        print(f"FAILED {name}")
    print(counts.summary(time.monotonic() - began))
    failed = [code for code in codes if code not in (0, NOTHING_TO_RUN)]
    return failed[0] if failed else min(codes)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
