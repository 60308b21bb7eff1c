"""Signals that are passed on to the ranks, exit codes, and the command line."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from hvdtrain.errors import ResourceError
from hvdtrain.launch import running
from hvdtrain.launch.job import note_stop, noted_here, run_job
from hvdtrain.launch.running import STOP_NOTE
from hvdtrain.signals import REPEAT_S, StopSignals
from tests.launch import environment

HVDTRAIN = [sys.executable, "-m", "hvdtrain"]


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def test_exit_codes() -> None:
    assert run_job(python("exit(7)"), os.environ, signal.SIGUSR1).code == 7
    killed = python("import os; os.kill(os.getpid(), 9)")
    assert run_job(killed, os.environ, signal.SIGUSR1).code == 137
    with pytest.raises(ResourceError, match="no-such-launcher: cannot be started"):
        run_job(["no-such-launcher"], os.environ, signal.SIGUSR1)


@pytest.mark.parametrize("code", [0, 75, 205])
def test_an_orderly_stop_gives_75_whatever_the_launcher_returns(
    code: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stop = "from hvdtrain.launch.job import note_stop; import os, sys; assert note_stop(os.environ)"
    assert run_job(python(f"{stop}; sys.exit({code})"), environment(), signal.SIGUSR1).code == 75
    monkeypatch.setenv(STOP_NOTE, "elsewhere:/tmp/never")
    assert not noted_here(os.environ)
    assert not note_stop(os.environ)
    assert not Path("/tmp/never").exists()


RANKS = """
import os, signal, sys, time
def end(number, frame):
    sys.stderr.write(MESSAGE)
    sys.stderr.flush()
    sys.exit(int(sys.argv[1]))
RULE = "-" * 74 + "\\n"
MESSAGE = "mpirun: Forwarding signal 10 to job\\nof a rank\\n" + 2 * (RULE + "mpirun detected\\n" + RULE) + "last"
signal.signal(signal.SIGUSR1, end)
print("ready", flush=True)
time.sleep(30)
"""


@pytest.mark.parametrize(
    ("number", "code", "ends_with"),
    [
        (signal.SIGINT, 138, 130),
        (signal.SIGTERM, 143, 143),
        (signal.SIGTERM, 1, 143),
        (signal.SIGUSR1, 138, 138),
        (signal.SIGTERM, 137, 137),
        (signal.SIGTERM, 6, 6),
    ],
)
def test_the_end_of_ranks_that_a_signal_ended_before_they_trained(
    number: signal.Signals, code: int, ends_with: int, tmp_path: Path
) -> None:
    """The code is that of the signal that the user sent; mpirun's remarks are shown only at a fault."""
    (tmp_path / "ranks.py").write_text(RANKS)
    run = (
        "import os, signal, sys; from hvdtrain.launch.job import run_job; "
        f"sys.exit(run_job([sys.executable, 'ranks.py', '{code}'], os.environ, signal.SIGUSR1).code)"
    )
    job = subprocess.Popen(
        python(run),
        cwd=tmp_path,
        env=environment(),
        text=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    assert job.stdout is not None
    assert job.stdout.readline() == "ready\n"
    os.killpg(job.pid, number)
    _, err = job.communicate(timeout=60)
    assert job.returncode == ends_with, err
    assert err.count("mpirun detected") == (2 if code in (6, 137) else 0)
    assert "of a rank\n" in err
    assert "last" in err


MPIRUN = """
import os, signal, subprocess, sys, time
RANK = (
    "import os, sys, time\\n"
    "from hvdtrain.launch.job import note_training\\n"
    "if sys.argv[1] == 'trains':\\n"
    "    note_training(os.environ)\\n"
    "print('ready', flush=True)\\n"
    "time.sleep(60)\\n"
)
rank = subprocess.Popen([sys.executable, "-c", RANK, sys.argv[1]])
signal.signal(signal.SIGUSR1, lambda *_: rank.send_signal(signal.SIGUSR1))
rank.wait()
time.sleep(float(sys.argv[2]))
sys.exit(6)
"""


@pytest.mark.parametrize(("state", "seconds", "code"), [("starts", 3600, 130), ("trains", 1, 6)])
def test_a_launcher_is_not_waited_for_when_a_signal_has_ended_its_ranks_before_training(
    state: str, seconds: float, code: int, tmp_path: Path
) -> None:
    (tmp_path / "mpirun.py").write_text(MPIRUN)
    run = (
        "import os, signal, sys; from hvdtrain.launch.job import run_job; "
        f"command = [sys.executable, 'mpirun.py', '{state}', '{seconds}']; "
        "sys.exit(run_job(command, os.environ, signal.SIGUSR1, here=True).code)"
    )
    with subprocess.Popen(
        python(run), cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, text=True
    ) as launching:
        assert launching.stdout is not None
        assert launching.stdout.readline() == "ready\n"
        launching.send_signal(signal.SIGINT)
        assert launching.wait(60) == code


def test_a_signal_that_the_launcher_loses_while_it_starts_is_passed_on_again(
    tmp_path: Path,
) -> None:
    child = (
        "import signal, sys, time\n"
        "count = [0]\n"
        "def got(*_):\n"
        "    count[0] += 1\n"
        "    if count[0] == 2:\n"
        "        sys.exit(9)\n"
        "signal.signal(signal.SIGUSR1, got)\n"
        f"open({str(tmp_path / 'ready')!r}, 'w').close()\n"
        "time.sleep(60)\n"
    )

    def send() -> None:
        while not (tmp_path / "ready").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=send).start()
    assert run_job(python(child), os.environ, signal.SIGUSR1).code == 9


def test_signals_that_come_together_are_passed_on_once(tmp_path: Path) -> None:
    """The signal that asks for a checkpoint is passed on, whatever signal came."""
    log = tmp_path / "log"
    child = (
        "import signal, time, pathlib\n"
        f"log = pathlib.Path({str(log)!r})\n"
        "def note(number, frame):\n"
        "    with log.open('a') as file: file.write(signal.Signals(number).name + ' ')\n"
        "for n in (signal.SIGUSR1, signal.SIGTERM): signal.signal(n, note)\n"
        "log.touch()\n"
        "end = time.monotonic() + 1.5\n"
        "while time.monotonic() < end: time.sleep(0.05)\n"
    )

    def send() -> None:
        while not log.exists():
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.2)
        os.kill(os.getpid(), signal.SIGUSR1)

    threading.Thread(target=send).start()
    assert run_job(python(child), os.environ, signal.SIGUSR1).code == 0
    assert log.read_text() == "SIGUSR1 "


def test_a_signal_that_came_before_the_start_is_passed_on(tmp_path: Path) -> None:
    child = (
        "import signal, sys, time\n"
        "signal.signal(signal.SIGUSR1, lambda *_: sys.exit(9))\n"
        "time.sleep(30)\n"
    )
    ended = run_job(python(child), os.environ, signal.SIGUSR1, lambda: True)
    assert ended.signalled
    assert ended.code in (9, 128 + signal.SIGUSR1)  # it came before the child had its handler


@pytest.mark.parametrize("wanted", [True, False])
def test_a_job_is_recalled_when_it_can_go_on_with_more_hosts(
    wanted: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "RECALL_S", 0.1)
    ready = tmp_path / "ready"
    child = (
        "import pathlib, signal, sys, time\n"
        "signal.signal(signal.SIGUSR1, lambda *_: sys.exit(9))\n"
        f"pathlib.Path({str(ready)!r}).touch()\n"
        f"time.sleep({60 if wanted else 1})\n"
    )
    ended = run_job(
        python(child), os.environ, signal.SIGUSR1, recall=lambda: wanted and ready.exists()
    )
    assert (ended.code, ended.recalled, ended.signalled) == (9 if wanted else 0, wanted, False)


def test_a_signal_repeated_at_once_counts_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Slurm and the launcher may both send it to a rank. A later SIGTERM kills, a later SIGUSR1 not."""
    now = [100.0]
    killed = []
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    with StopSignals() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGUSR1)
        assert stop.requested
        now[0] += REPEAT_S + 1
        monkeypatch.setattr(os, "kill", lambda pid, number: killed.append(number))
        signal.raise_signal(signal.SIGUSR1)
        assert killed == []
        signal.raise_signal(signal.SIGTERM)
        assert killed == [signal.SIGTERM]


def launch(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*HVDTRAIN, "launch", *arguments],
        env=environment(env),
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=60,
    )


def test_dry_run() -> None:
    done = launch(
        *("--hosts", "localhost:2", "--dry-run", "--", "train", "x", "a=1", "--resume", "auto"),
        HVDTRAIN_TEST_TOKEN="very secret",
    )
    assert done.returncode == 0, done.stderr
    assert "placement: 2 ranks on 1 host (localhost): 2 ranks\n" in done.stdout
    assert done.stdout.rstrip().endswith(" train x a=1 --resume auto")
    assert "not forwarded, named like secrets: HVDTRAIN_TEST_TOKEN" in done.stderr
    assert "very secret" not in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--", "train", "x"), "give --hosts a:4,b:4 or --hostfile FILE"),
        (("--hosts", "a:x", "--", "train", "x"), "slots of a"),
        (("--hosts", "a:1", "--launcher", "srun", "--", "train", "x"), "works only in a Slurm job"),
        (("slurm", "configs/demo_digits.yaml", "--container", "pyxis"), "give --image"),
        (("slurm", "configs/demo_digits.yaml", "--sweep", "lr.bse=1,2"), "lr.bse: unknown key"),
    ],
)
def test_wrong_use_is_one_line(arguments: tuple[str, ...], message: str) -> None:
    done = launch(*arguments)
    assert done.returncode == 2, done.stdout + done.stderr
    [line] = done.stderr.splitlines()
    assert message in line


def test_it_needs_no_torch() -> None:
    code = "import hvdtrain.cli.launch, sys; print([m for m in ('torch', 'horovod') if m in sys.modules])"
    done = subprocess.run(
        python(code), env=environment(), capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"


def test_the_command_ends_when_this_process_is_killed(tmp_path: Path) -> None:
    code = "import os, sys, time; print(os.getpid(), flush=True); time.sleep(100)"
    outer = (
        "import os, signal, sys; from hvdtrain.launch.job import run_job; "
        f"run_job([sys.executable, '-c', {code!r}], os.environ, signal.SIGUSR1)"
    )
    with subprocess.Popen(
        python(outer), env=environment(), stdout=subprocess.PIPE, text=True
    ) as job:
        assert job.stdout is not None
        child = psutil.Process(int(job.stdout.readline()))
        job.kill()
    psutil.wait_procs([child], timeout=60)
    assert not child.is_running()
