"""Start real ranks for a test, and collect what they print."""

from __future__ import annotations

import os
import random
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil

REPOSITORY = Path(__file__).parent.parent
QUICK_END = (
    "from hvdtrain.launch import commands; commands.END_S = 2; "
    "from hvdtrain.cli.main import main; main()"
)
"""Python code of an `hvdtrain` whose mpirun waits 2 s, not 10, for ranks that it has told to end;
it waits twice, even where all ranks have ended."""
BIN = Path(sys.executable).parent


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment of a user who activated the virtual environment."""
    env = dict(os.environ, PATH=f"{BIN}:{os.environ['PATH']}", PYTHONUNBUFFERED="1")
    env["PYTHONPATH"] = os.pathsep.join(
        filter(None, (str(REPOSITORY), os.environ.get("PYTHONPATH")))
    )
    if os.geteuid() == 0:
        env |= {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    return env | dict(extra or {})


def free_port() -> int:
    """A port on which two local ranks can listen, port and port + 1.

    Below the range from which the kernel gives ports to anyone who asks for any, as launchers do
    after this has looked. Test processes beside each other have ranges of their own.
    """
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % 10
    first = 20000 + 1000 * worker
    for port in random.SystemRandom().sample(range(first, first + 1000), 100):
        with socket.socket() as one, socket.socket() as two:
            try:
                one.bind(("127.0.0.1", port))
                two.bind(("127.0.0.1", port + 1))
            except OSError:
                continue
        return port
    raise RuntimeError(f"no two free ports in a row from {first} to {first + 1000}")


def mpirun(ranks: int, *command: object) -> list[str]:
    """The command line that starts `ranks` ranks here, more than there are cores if need be."""
    return ["mpirun", "--oversubscribe", "-np", str(ranks), *map(str, command)]


def horovodrun(ranks: int, *command: object, controller: str = "--mpi") -> list[str]:
    """The same by Horovod's own launcher."""
    return ["horovodrun", controller, "-np", str(ranks), *map(str, command)]


def run(
    command: Sequence[str], *, cwd: Path, timeout_s: float = 240, **extra: str
) -> subprocess.CompletedProcess[str]:
    """Run to the end; never raises for a bad exit code."""
    return subprocess.run(
        command,
        cwd=cwd,
        env=environment(extra),
        timeout=timeout_s,
        text=True,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
    )


def end_jobs(jobs: Sequence[subprocess.Popen[str]]) -> None:
    """Kill what a test has left of them."""
    for job in jobs:
        if job.poll() is None:
            for child in psutil.Process(job.pid).children(recursive=True):
                child.kill()
            job.kill()
        if job.stdout is not None and not job.stdout.closed:
            job.communicate()
