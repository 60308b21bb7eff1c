"""Choose the settings of the gradient exchange twice; rank 0 prints the choices of all ranks."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from hvdtrain.comm.start import init_comm
from hvdtrain.config.load import parse_config
from hvdtrain.run.exchange_tuning import tune

CONFIG = """
comm: {tune: measure, compression: auto}
phases: [{epochs: 1, image_size: 8, batch_per_worker: 1}]
"""


def main(file: Path) -> None:
    comm = init_comm()
    cfg = parse_config(CONFIG)
    first = tune(cfg, comm, file)
    if comm.rank == 0:
        first.write(file)
    # The machines of other ranks may not see the file.
    again = tune(cfg, comm, file if comm.rank == 0 else Path("/nowhere"))
    chosen = [each.config.comm.model_dump() for each in (first, again)]
    texts = comm.gather_text(json.dumps([chosen, again.text]))
    comm.shutdown()
    if comm.rank == 0:
        print(json.dumps(list(map(json.loads, texts))))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
