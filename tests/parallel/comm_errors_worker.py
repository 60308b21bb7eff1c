"""Start a sum that fails on two ranks; each rank that gets a CommError writes it to a file.

`mismatch`: the ranks have different shapes. `leave`: rank 1 exits before the sum.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch

from hvdtrain.comm.start import init_comm
from hvdtrain.errors import CommError


def main(fault: str, out: Path) -> None:
    comm = init_comm()
    assert comm.sum_(torch.ones(3), "equal").tolist() == [2.0] * 3
    if fault == "leave" and comm.rank == 1:
        os._exit(0)
    length = 3 + comm.rank if fault == "mismatch" else 3
    try:
        comm.sum_(torch.ones(length), "gradients")
    except CommError as error:
        (out / f"rank-{comm.rank}").write_text(str(error))
    comm.shutdown()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
