"""Start real ranks for a test, and collect their output."""

from __future__ import annotations

import os
import random
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil
import pytest

REPOSITORY = Path(__file__).parent.parent
QUICK_END = (
    "from hvdtrain.launch import commands; commands.END_S = 2; commands.SPARE_LATE_S = 3; "
    "from hvdtrain.cli.main import main; main()"
)
"""Python code of an `hvdtrain` whose mpirun waits 2 s instead of 10 before it kills ranks;
it waits twice, even if all ranks have ended."""
LOST_HOSTS = pytest.mark.skipif(
    "HVDTRAIN_LOST_HOSTS" not in os.environ, reason="takes a minute: set HVDTRAIN_LOST_HOSTS=1"
)
BIN = Path(sys.executable).parent


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment of a user who activated the virtual environment.

    Python buffers its output: unbuffered, `print` writes a line in pieces, and lines of two ranks mix.
    """
    env = dict(os.environ, PATH=f"{BIN}:{os.environ['PATH']}", PYTHONUNBUFFERED="")
    env["PYTHONPATH"] = os.pathsep.join(
        filter(None, (str(REPOSITORY), os.environ.get("PYTHONPATH")))
    )
    if os.geteuid() == 0:
        env |= {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    env.setdefault(
        "OMPI_MCA_odls_base_sigkill_timeout", "1"
    )  # mpirun waits twice as long at a fault
    return env | dict(extra or {})


USUAL_SIGNALS = ["env", "--default-signal=INT,HUP"]
"""Before a command: signals end it as usual, though `nohup` or `&` has the tests ignore them."""
APART = 4
"""Ports of a job of so many ranks follow each other."""
_given: deque[int] = deque(maxlen=100)
"""What free_port returned last, which may not be in use yet."""


def free_port() -> int:
    """A port on which two local ranks can listen, port and port + 1; none is returned again soon.

    It is below the range from which the kernel assigns ports, for example to a launcher started
    later. Each test process that runs beside others has its own range.
    """
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % 10
    first = 20000 + 1000 * worker
    for port in random.SystemRandom().sample(range(first, first + 1000), 1000):
        if any(abs(port - other) < APART for other in _given):
            continue
        with socket.socket() as one, socket.socket() as two:
            try:
                one.bind(("127.0.0.1", port))
                two.bind(("127.0.0.1", port + 1))
            except OSError:
                continue
        _given.append(port)
        return port
    raise RuntimeError(f"no two free ports in a row from {first} to {first + 1000}")


def mpirun(ranks: int, *command: object) -> list[str]:
    """The command line that starts `ranks` ranks on this host, even if it has fewer cores."""
    return ["mpirun", "--oversubscribe", "-np", str(ranks), *map(str, command)]


def horovodrun(ranks: int, *command: object, controller: str = "--mpi") -> list[str]:
    """The command line of Horovod's launcher for `ranks` ranks on this host."""
    return ["horovodrun", controller, "-np", str(ranks), *map(str, command)]


def torchrun(ranks: int, *command: object) -> list[str]:
    """The command line of torch's launcher for `ranks` ranks on this host; it ends with 1 where a rank fails."""
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--no-python"]
    return [*words, f"--nproc-per-node={ranks}", *map(str, command)]


ENGINES = {"horovod": mpirun, "torch": torchrun}
"""Launchers by the engine that joins their ranks."""


def run(
    command: Sequence[str], *, cwd: Path, timeout_s: float = 600, **extra: str
) -> subprocess.CompletedProcess[str]:
    """Run to the end. No exit code is an error here, but an internal error of hvdtrain is."""
    done = subprocess.run(
        command,
        cwd=cwd,
        env=environment(extra),
        timeout=timeout_s,
        text=True,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
    )
    assert "internal error" not in done.stderr, done.stderr
    return done


def end_jobs(jobs: Sequence[subprocess.Popen[str]]) -> None:
    """Kill the processes that are left of `jobs`."""
    for job in jobs:
        if job.poll() is None:
            for child in psutil.Process(job.pid).children(recursive=True):
                child.kill()
            job.kill()
        if job.stdout is not None and not job.stdout.closed:
            job.communicate()
