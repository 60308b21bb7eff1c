"""Signals that ask a process to stop, and mpirun's SIGCONT, which tells a rank with a fault that another rank
has ended; in training it is none."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hvdtrain.signals import REPEAT_S
from tests.launch import USUAL_SIGNALS, environment

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


STOPPED = """
import hashlib, os, sys, time
from hvdtrain.signals import HeardStops, cleaned_up, end_at_once, heard, ignore_repeats
def long_call():
    hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)
def say(text):
    print(text, flush=True)
def early(number):
    end_at_once(number, lambda: say("early"))
with heard(early), cleaned_up(lambda: say("cleaned")):
    if sys.argv[1] == "early":
        say("ready")
        long_call()
    with HeardStops() as stop:
        stop.on_request = lambda: say("asked")
        say("ready")
        long_call() if sys.argv[1] == "busy" else time.sleep(0.2)
    say("closed")
    if sys.argv[1] == "ending":
        ignore_repeats()
    while sys.argv[1] != "ending" and not stop.requested:
        time.sleep(0.01)
os.kill(os.getpid(), 15 if sys.argv[1] == "ending" else 0)
say("ended")
"""


REPEATED = """
import os
from hvdtrain.signals import StopSignals
class Last:  # deleted when Python has put its own handlers back
    def __del__(self, kill=os.kill, me=os.getpid()):
        kill(me, 15)
last = Last()
with StopSignals() as stop:
    os.kill(os.getpid(), 15)
    assert stop.requested
os.kill(os.getpid(), 15)
"""


def start(*words: str) -> subprocess.Popen[str]:
    job = subprocess.Popen(
        [*USUAL_SIGNALS, sys.executable, "-c", STOPPED, *words],
        env=environment(),
        text=True,
        stdout=subprocess.PIPE,
    )
    assert job.stdout is not None
    assert job.stdout.readline() == "ready\n"
    return job


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1])
def test_a_signal_before_training_ends_the_process(number: signal.Signals) -> None:
    job = start("early")
    job.send_signal(number)
    assert job.communicate(timeout=60)[0] == "cleaned\nearly\n"
    assert job.returncode == 128 + number


def test_a_signal_in_a_long_step_is_told_at_once_and_a_second_one_ends_it() -> None:
    """The step is one call, which takes minutes."""
    job = start("busy")
    assert job.stdout is not None
    job.send_signal(signal.SIGINT)
    assert job.stdout.readline() == "asked\n"
    time.sleep(REPEAT_S + 1)
    job.send_signal(signal.SIGTERM)
    assert job.communicate(timeout=60)[0] == "cleaned\n"
    assert job.returncode == 128 + signal.SIGTERM


def test_a_signal_after_training_does_not_change_how_the_process_ends() -> None:
    job = start("quick")
    assert job.stdout is not None
    assert job.stdout.readline() == "closed\n"
    job.send_signal(signal.SIGTERM)
    assert job.communicate(timeout=60)[0] == "ended\n"
    assert job.returncode == 0


def test_a_repeated_signal_does_not_change_how_a_process_ends_that_has_stopped(
    tmp_path: Path,
) -> None:
    job = start("ending")
    assert job.communicate(timeout=60)[0] == "closed\nended\n"
    assert job.returncode == 0
    (tmp_path / "supervisor.py").write_text(REPEATED)
    done = subprocess.run(
        [sys.executable, "supervisor.py"], cwd=tmp_path, env=environment(), timeout=60
    )
    assert done.returncode == 0
