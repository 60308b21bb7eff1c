"""mpirun's SIGCONT tells a rank with a fault that another rank has ended; in training it is none."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.launch import environment

RANK = """
import os, signal, sys, time
from hvdtrain.signals import StopSignals, expect_notice, wait_for_notice
expect_notice()
if sys.argv[1] == "wait":
    print("ready", flush=True)
    print(wait_for_notice(float(sys.argv[2])), flush=True)
else:
    with StopSignals() as stop:
        print("ready", flush=True)
        time.sleep(1)
        print(stop.requested, flush=True)
        while not stop.requested:
            time.sleep(0.01)
        print("signal", flush=True)
"""
LAUNCHER = """#!{python}
import os, signal, subprocess, sys
rank = subprocess.Popen([sys.executable, "rank.py", *sys.argv[1:]], stdout=subprocess.PIPE, text=True)
print(rank.stdout.readline(), end="", flush=True)
for number in (signal.SIGCONT, signal.SIGTERM):
    rank.send_signal(number)
    print(rank.stdout.readline(), end="", flush=True)
print(rank.wait())
"""


def launch(folder: Path, name: str, *words: str) -> list[str]:
    (folder / "rank.py").write_text(RANK)
    launcher = folder / name
    launcher.write_text(LAUNCHER.format(python=sys.executable))
    launcher.chmod(0o755)
    done = subprocess.run(
        [str(launcher), *words],
        cwd=folder,
        env=environment(),
        text=True,
        capture_output=True,
        timeout=60,
        check=True,
    )
    return done.stdout.split()


@pytest.mark.parametrize("name", ["mpirun", "orted"])
def test_a_job_that_goes_on_after_a_suspension_trains_on(tmp_path: Path, name: str) -> None:
    assert launch(tmp_path, name, "train") == ["ready", "False", "signal", "0"]


def test_a_fault_of_its_own_is_told_apart(tmp_path: Path) -> None:
    assert launch(tmp_path, "mpirun", "wait", "30")[:2] == ["ready", "True"]
    assert launch(tmp_path, "other", "wait", "0.5")[:2] == ["ready", "False"]
