"""A signal in the first seconds of a training: `python -m tests.chaos.first_seconds --moments 40`.

It is sent at moments spread over the start, from the launch of the command to the first updates: imports,
set-up, first step. None may be lost, print a traceback or hang; the exit code is the documented one.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from tests.chaos.cases import ALONE, LAUNCH
from tests.chaos.course import WHERE, Chaos
from tests.chaos.job import Job
from tests.chaos.moments import all_events

NAMES = ("INT", "TERM")
LIMIT_S = 60.0
"""In which a job must have ended after the signal."""
SAVED = 75


@dataclass
class Try:
    """One signal, and what came of it."""

    launcher: str
    number: signal.Signals
    at_s: float
    """Since the start of the command."""
    code: int | None = None
    """None: the job did not end in time."""
    ended_s: float = 0.0
    """From the signal to the end of the last process."""
    lines: list[str] = field(default_factory=list)
    """Printed after the signal, without signs of life."""
    left: list[str] = field(default_factory=list)
    began: bool = False
    """Training had begun."""

    def faults(self) -> list[str]:
        """What is wrong; empty if all is as documented."""
        found = [] if self.code is not None else ["did not end"]
        allowed = (SAVED, 128 + self.number) if not self.began else (SAVED,)
        if self.code is not None and self.code not in allowed:
            found.append(f"exit code {self.code}")
        if any("Traceback" in line or "Exception ignored" in line for line in self.lines):
            found.append("traceback")
        if self.code != SAVED and len(self.lines) > 1:
            found.append(f"{len(self.lines)} lines")
        return found + self.left

    def text(self) -> str:
        """One line."""
        what = ", ".join(self.faults()) or "ok"
        begun = ", in training" if self.began else ""
        return (
            f"{self.launcher:6} {self.number.name} after {self.at_s:5.2f} s{begun}: code {self.code}, "
            f"ended in {self.ended_s:.1f} s: {what}"
        )


def signal_once(folder: Path, launcher: str, number: signal.Signals, at_s: float) -> Try:
    """Start a training, signal it after `at_s`, and wait for its end."""
    one, run_dir = Try(launcher, number, at_s), folder / "disk/run"
    began = time.monotonic()
    job = Job(folder, launcher, 1 if launcher == ALONE else 2, ["phases.0.epochs=200", *WHERE], [])
    try:
        time.sleep(max(0.0, at_s - (time.monotonic() - began)))
        before = len(job.text())
        one.began = any(event["kind"] == "start" for event in all_events(run_dir))
        sent = time.monotonic()
        os.killpg(job.process.pid, number)
        one.code = job.wait(LIMIT_S)
        one.ended_s = time.monotonic() - sent
        one.lines = [text for text in job.text()[before:].splitlines() if _counts(text)]
        if one.code != SAVED and run_dir.exists():
            one.left.append("the run directory is left")
    finally:
        job.end()
    return one


def _counts(line: str) -> bool:
    """Whether a line is more than a sign of life or a note of the start: that it ends, or mpirun's."""
    text = line.strip()
    own = text.startswith(
        ("hvdtrain: ", "placement:", "command:", "classes:", "warning:", "live page:")
    )
    return bool(text) and not (own and " error: " not in text and "ended by" not in text)


def start_s(folder: Path, launcher: str) -> float:
    """How long a training takes to its first update."""
    began = time.monotonic()
    job = Job(folder, launcher, 1 if launcher == ALONE else 2, ["phases.0.epochs=200", *WHERE], [])
    try:
        while not any(event["kind"] == "train" for event in all_events(folder / "disk/run")):
            if job.process.poll() is not None:
                raise RuntimeError(f"the training ended:\n{job.text()}")
            time.sleep(0.02)
        return time.monotonic() - began
    finally:
        job.end()


def main(arguments: list[str]) -> int:
    """1 if a signal was not handled as documented."""
    parser = argparse.ArgumentParser(prog="tests.chaos.first_seconds", description=__doc__)
    parser.add_argument("--moments", type=int, default=40, help="of each launcher and signal")
    parser.add_argument("--launcher", choices=(ALONE, LAUNCH), action="append")
    parser.add_argument("--signal", choices=NAMES, action="append")
    parser.add_argument("--verbose", action="store_true", help="show what was printed")
    known = parser.parse_args(arguments)
    # A shell that starts this in the background has SIGINT ignored, and so would the trainings.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    chaos, wrong, tries = Chaos(), 0, 0
    try:
        for launcher in known.launcher or (ALONE, LAUNCH):
            whole_s = 1.05 * start_s(chaos.prepared(f"whole-{launcher}"), launcher)
            for name in known.signal or NAMES:
                for k in range(known.moments):
                    folder = chaos.prepared(f"{launcher}-{name}-{k}")
                    at_s = whole_s * k / max(1, known.moments - 1)
                    one = signal_once(folder, launcher, signal.Signals[f"SIG{name}"], at_s)
                    tries, wrong = tries + 1, wrong + bool(one.faults())
                    print(one.text(), flush=True)
                    if known.verbose or one.faults():
                        print("".join(f"    | {line}\n" for line in one.lines), end="", flush=True)
    finally:
        chaos.close()
    print(f"{tries} signals, {wrong} not as documented")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
