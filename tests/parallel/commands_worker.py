"""Run several `hvdtrain` command lines on the ranks of one job, one after the other.

The ranks keep their communicator between commands; a command sees it as a new one.
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
from pathlib import Path
from typing import Any

from hvdtrain.cli import main as cli
from hvdtrain.comm import start
from hvdtrain.comm.ranks import Comm


def run_command(arguments: list[str]) -> dict[str, Any]:
    """Run one command line; returns the exit code and the output of this rank."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    sys.argv = ["hvdtrain", *arguments]
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            cli.main()
        except SystemExit as stop:
            code = int(stop.code or 0)
    return {"code": code, "out": out.getvalue(), "err": err.getvalue()}


def main(commands: Path, results: Path) -> None:
    comm: Comm = start.init_comm()
    shutdown = comm.shutdown
    comm.shutdown = lambda: None  # type: ignore[method-assign]
    start.init_comm = lambda *_, **_named: comm
    collected = []
    for arguments in json.loads(commands.read_text()):
        collected.append(
            list(map(json.loads, comm.gather_text(json.dumps(run_command(arguments)))))
        )
        if comm.rank == 0:
            results.write_text(json.dumps(collected))
    shutdown()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
