"""One rank of a run that stops twice, so that a test can look at it.

After its address is published it waits for the file `go`, after the summary for `release`.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

from hvdtrain import train
from hvdtrain.comm.start import init_comm
from hvdtrain.config.load import load_config
from hvdtrain.run import prepare as run
from hvdtrain.telemetry.reports import End

LIMIT_S = 120.0
"""The longest wait for a file."""


def wait_for(name: str) -> None:
    """Wait until the file `name` exists."""
    deadline = time.monotonic() + LIMIT_S
    while not Path(name).exists():
        if time.monotonic() > deadline:
            raise TimeoutError(name)
        time.sleep(0.05)


def main(config: str) -> None:
    comm = init_comm()
    Path(f"pid-{comm.rank}").write_text(str(os.getpid()))
    publish, write_summary = run.publish, train.write_summary

    def publish_and_wait(*arguments: Any) -> None:
        publish(*arguments)
        wait_for("go")

    def summarise_and_wait(*arguments: Any) -> End:
        end = write_summary(*arguments)
        wait_for("release")
        return end

    run.publish = publish_and_wait
    train.write_summary = summarise_and_wait
    train.train(load_config(config), comm, run_dir=Path("run"))


if __name__ == "__main__":
    main(sys.argv[1])
