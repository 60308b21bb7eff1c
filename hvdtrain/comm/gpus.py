"""Which of the GPUs that a rank sees is its own."""

from __future__ import annotations


def own_gpu(local_rank: int, visible: int) -> int | None:
    """The number of this rank's GPU among `visible` ones; None if it has none.

    A rank that sees a single GPU was given it by its launcher (Slurm: `--gpus-per-task`, or a binding by
    CUDA_VISIBLE_DEVICES). Whether ranks then have different GPUs is compared by UUID in preflight.
    """
    if visible == 1:
        return 0
    return local_rank if local_rank < visible else None
