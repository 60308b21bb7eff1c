"""A training job of real processes, and everything that belongs to it."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from pathlib import Path

import psutil

from benchmarks.netlab.lab import Lab
from hvdtrain.signals import MPI_STARTERS
from tests.chaos.cases import ALONE, HOSTS, LAUNCH, TORCHRUN
from tests.launch import BIN, environment, mpirun, torchrun

MARK = "CHAOS_CASE"
"""Environment variable by which processes of a case are found, whatever became of their parents."""
INSIDE = Path(__file__).with_name("inside")
TRAIN = [str(BIN / "hvdtrain"), "train"]
LIMIT_S = 300.0
"""Of one job, also on a busy machine."""
GONE_S = 60.0
"""In which all processes must have ended after the first of them has."""


class Job:
    """A job that runs in `folder`, with its output in a file there."""

    def __init__(
        self,
        folder: Path,
        launcher: str,
        ranks: int,
        settings: list[str],
        options: list[str],
        lab: Lab | None = None,
    ) -> None:
        self.folder, self.launcher, self.ranks_wanted = folder, launcher, ranks
        self._lab = lab
        number = len(list(folder.glob("output-*.txt"))) + 1
        self.output = folder / f"output-{number}.txt"
        self.segments: set[Path] = set()
        """Shared memory that its processes have had open."""
        words = [*TRAIN, "chaos.yaml", *settings]
        if launcher in (LAUNCH, HOSTS):
            hosts = f"localhost:{ranks}" if lab is None else ",".join(lab.hosts)
            words = [TRAIN[0], "launch", "--hosts", hosts, *options, "--", *words[1:]]
            words = [*(lab.inside(0) if lab else []), *words]
        elif launcher == TORCHRUN:
            words = torchrun(ranks, *options, *words)
        elif launcher != ALONE:
            words = mpirun(ranks, *words)
        (folder / "tmp").mkdir(exist_ok=True)
        env = environment({MARK: str(folder), "TMPDIR": str(folder / "tmp")})
        env["PYTHONPATH"] = f"{INSIDE}{os.pathsep}{env['PYTHONPATH']}"
        with self.output.open("wb") as file:
            self.process = subprocess.Popen(
                words,
                cwd=folder,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def processes(self) -> list[psutil.Process]:
        """Every process of the case that has not ended."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                mine = process.environ().get(MARK) == str(self.folder)
                if (mine or self._on_a_host(process)) and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    def _on_a_host(self, process: psutil.Process) -> bool:
        """Whether it is a program of Open MPI's, or started by one, on a host of the lab."""
        if self._lab is None:
            return False
        ours = (
            process.name().startswith(MPI_STARTERS) or "OMPI_COMM_WORLD_RANK" in process.environ()
        )
        return ours and self._lab.has(process.pid)

    def ranks(self) -> dict[int, psutil.Process]:
        """The ranks' processes by number."""
        if self.launcher == ALONE:
            return {0: psutil.Process(self.process.pid)} if self.process.poll() is None else {}
        found = {}
        for process in self.processes():
            with contextlib.suppress(psutil.Error):
                if self.launcher == TORCHRUN:
                    rank = process.environ().get("RANK")
                    started = process.ppid() == self.process.pid
                else:
                    rank = process.environ().get("OMPI_COMM_WORLD_RANK")
                    parent = process.parent()
                    started = parent is not None and parent.name().startswith(MPI_STARTERS)
                if rank and started:
                    found[int(rank)] = process
        return found

    def mpirun(self) -> psutil.Process | None:
        """The launcher of the ranks; None if they have none."""
        return next((process.parent() for process in self.ranks().values()), None)

    def look(self) -> None:
        """Take in what shared memory the job has open now."""
        for process in self.processes():
            with contextlib.suppress(OSError):
                for line in Path(f"/proc/{process.pid}/maps").read_text().splitlines():
                    _, _, name = line.partition("/dev/shm/")
                    if name and not name.endswith("(deleted)"):
                        self.segments.add(Path("/dev/shm") / name)

    def wait(self, limit_s: float = LIMIT_S) -> int | None:
        """Wait until all processes have ended; the exit code, or None if that takes too long."""
        deadline, looks = time.monotonic() + limit_s, 0
        while self.process.poll() is None:
            if time.monotonic() > deadline:
                return None
            if looks % 20 == 0:
                self.look()
            looks += 1
            time.sleep(0.05)
        deadline = time.monotonic() + GONE_S
        while self.processes():
            if time.monotonic() > deadline:
                return None
            time.sleep(0.1)
        code = self.process.returncode
        return code if code >= 0 else 128 - code

    def end(self) -> None:
        """Kill what is left."""
        for process in self.processes():
            with contextlib.suppress(psutil.Error):
                process.kill()
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()

    def text(self) -> str:
        """What it has printed so far."""
        return self.output.read_text(errors="replace")
