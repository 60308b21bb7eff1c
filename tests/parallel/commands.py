"""Run many command lines in one job of real ranks: to start ranks takes seconds, a refusal does not."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.launch import REPOSITORY, mpirun, run

WORKER = REPOSITORY / "tests/parallel/commands_worker.py"


@dataclass(frozen=True)
class Outcome:
    """How a command ended, over all ranks."""

    codes: list[int]
    """Exit code of every rank."""
    stdout: str
    stderr: str

    @property
    def errors(self) -> list[str]:
        """What hvdtrain reports as errors; fails on a traceback."""
        return error_lines(self.stderr)


def error_lines(stderr: str) -> list[str]:
    """What hvdtrain reports as errors, without the messages of the launcher; fails on a traceback."""
    assert "Traceback" not in stderr, stderr
    return [line for line in stderr.splitlines() if line.startswith("hvdtrain: error: ")]


def run_commands(
    ranks: int, commands: Mapping[str, Sequence[object]], folder: Path
) -> dict[str, Outcome]:
    """Run `hvdtrain ARGUMENTS` for each of the named `commands`, in order, on the same ranks.

    A command with an error on one rank only would end the job: it needs a separate job.
    """
    listed, results = folder / "commands.json", folder / "results.json"
    listed.write_text(json.dumps([list(map(str, words)) for words in commands.values()]))
    command = [sys.executable, str(WORKER), str(listed), str(results)]
    done = run(mpirun(ranks, *command) if ranks > 1 else command, cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    outcomes = {}
    for name, by_rank in zip(commands, json.loads(results.read_text()), strict=True):
        assert len(by_rank) == ranks
        codes = [rank["code"] for rank in by_rank]
        texts = ("".join(rank[stream] for rank in by_rank) for stream in ("out", "err"))
        outcomes[name] = Outcome(codes, *texts)
    return outcomes
