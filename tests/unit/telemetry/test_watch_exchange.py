"""What hooks on a DistributedDataParallel see, in a process group of one rank."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import hvdtrain
from hvdtrain.comm.watched_group import WatchedGroup, watched_ranks
from hvdtrain.errors import CommError
from hvdtrain.telemetry.watch_exchange import WatchedExchange

CPU = torch.device("cpu")
LATE_S = 0.5


@pytest.fixture
def group() -> Iterator[None]:
    """This process has joined a job of torch.distributed."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    if dist.is_initialized():
        dist.destroy_process_group()


def model() -> DistributedDataParallel:
    return DistributedDataParallel(nn.Sequential(nn.Linear(4, 2), nn.BatchNorm1d(2)))


def late(_state, bucket):  # type: ignore[no-untyped-def]
    """A communication hook whose sum takes LATE_S; torch refuses annotations as text."""
    buffer, sum_ = bucket.buffer(), torch.futures.Future()
    threading.Timer(LATE_S, sum_.set_result, (buffer,)).start()
    return sum_


def test_the_wait_for_the_sums_is_not_computing(group: None) -> None:
    ddp = model()
    ddp.register_comm_hook(None, late)
    exchange = WatchedExchange(ddp, CPU)
    for _step in range(2):
        ddp(torch.randn(3, 4)).sum().backward()
        exchange.end_step()
    assert len(exchange.clock.waiting.laps()) == 2
    assert exchange.clock.waiting.total_s > LATE_S  # of two steps; a part may pass in backward
    exchange.close()
    ddp(torch.randn(3, 4)).sum().backward()
    assert exchange.backward_passes == 2


def test_accumulation_is_one_lap_and_one_exchange(group: None) -> None:
    ddp = model()
    exchange = WatchedExchange(ddp, CPU)
    with ddp.no_sync():
        ddp(torch.randn(3, 4)).sum().backward()
    ddp(torch.randn(3, 4)).sum().backward()
    exchange.end_step()
    assert exchange.backward_passes == 2
    assert exchange.bytes_sent == 4 * (4 * 2 + 2 + 2 + 2)
    assert len(exchange.clock.waiting.laps()) == 1


def test_an_evaluation_is_not_seen(group: None) -> None:
    ddp = model()
    exchange = WatchedExchange(ddp, CPU)
    with torch.no_grad():
        ddp(torch.randn(3, 4))
    assert exchange.clock.forward.total_s == 0
    assert exchange.clock.waiting.total_s == 0


def test_a_group_of_one(group: None) -> None:
    ranks = watched_ranks()
    assert isinstance(ranks, WatchedGroup)
    assert (ranks.rank, ranks.size, ranks.local_rank, ranks.local_size) == (0, 1, 0, 1)
    assert ranks.gather(torch.tensor([1.0, 2.0]), "row").tolist() == [[1.0, 2.0]]
    assert ranks.gather_text("ä") == ["ä"]
    assert ranks.gather_text("") == [""]
    assert ranks.sum_(torch.tensor([3.0]), "sum").item() == 3.0
    with pytest.raises(CommError, match="sums its gradients itself"):
        ranks.refuse({"grad.0": torch.zeros(1)})


def test_a_group_that_is_gone_before_the_watch_is_closed(group: None, tmp_path: Path) -> None:
    watch = hvdtrain.watch.start(
        batch_size=1, steps_per_epoch=2, output=tmp_path, metrics={"enabled": False}
    )
    dist.destroy_process_group()
    with pytest.raises(CommError, match="close the watch before destroy_process_group"):
        watch.close()
