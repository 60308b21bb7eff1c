"""Trains `every.yaml` once for each line of settings in a file, one after the other, and writes the
exit code and the message of each to `rank-N.json`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from hvdtrain import train
from hvdtrain.comm.start import init_comm
from hvdtrain.config.load import load_config
from hvdtrain.errors import HvdtrainError


def main(settings: Path) -> None:
    train.write_page = lambda run: None  # matplotlib takes seconds
    comm = init_comm()
    results: list[tuple[int, str]] = []
    for number, line in enumerate(json.loads(settings.read_text())):
        try:
            cfg = load_config("every.yaml", line)
            train.train(cfg, comm, run_dir=Path(f"runs/{number}"))
            results.append((0, ""))
        except HvdtrainError as error:
            results.append((error.exit_code, str(error)))
    Path(f"rank-{comm.rank}.json").write_text(json.dumps(results))
    assert "torch._dynamo" not in sys.modules  # its import takes a second of each start
    comm.shutdown()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
