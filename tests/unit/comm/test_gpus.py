"""Which GPU is a rank's."""

from __future__ import annotations

from hvdtrain.comm.gpus import own_gpu


def test_a_rank_takes_the_gpu_of_its_local_rank_or_the_only_one() -> None:
    assert [own_gpu(rank, 4) for rank in range(5)] == [0, 1, 2, 3, None]
    assert [own_gpu(rank, 1) for rank in range(3)] == [0, 0, 0]
    assert own_gpu(0, 0) is None
