"""Compare the gradients of the ranks of this job with those of one process on the whole batch."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from hvdtrain.comm.agreement import any_rank
from hvdtrain.comm.ranks import Comm
from hvdtrain.comm.start import init_comm
from hvdtrain.engine.reducer import Reducer
from hvdtrain.errors import SumRefused

PER_RANK = 6


class Net(nn.Module):
    """A network with a layer that only rank 0 uses, and one that no rank uses."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.linear = nn.Linear(8 * 36, 5)
        self.sometimes = nn.Linear(5, 5)
        self.never = nn.Linear(5, 5)

    def forward(self, x: torch.Tensor, *, extra: bool) -> torch.Tensor:
        y = self.linear(self.conv(x).relu().flatten(1))
        return y + self.sometimes(y) if extra else y


def make_net(channels_last: bool) -> Net:
    torch.manual_seed(1)
    net = Net()
    return net.to(memory_format=torch.channels_last) if channels_last else net


def check(comm: Comm, *, accumulate: int, channels_last: bool, compression: str) -> None:
    count = PER_RANK * comm.size
    generator = torch.Generator().manual_seed(2)
    images = torch.randn(count, 3, 6, 6, generator=generator)
    labels = torch.randint(0, 5, (count,), generator=generator)

    single = make_net(channels_last)
    for rank in range(comm.size):
        mine = slice(rank, None, comm.size)
        logits = single(images[mine], extra=rank == 0)
        (functional.cross_entropy(logits, labels[mine], reduction="sum") / count).backward()

    net = make_net(channels_last)
    reducer = Reducer(
        net.parameters(), comm, accumulate=accumulate, compression=compression, group_bytes=900
    )
    mine = slice(comm.rank, None, comm.size)
    for _ in range(2):  # the second step must not see gradients of the first
        reducer.start_step()
        parts = images[mine].chunk(accumulate), labels[mine].chunk(accumulate)
        for x, y in zip(*parts, strict=True):
            loss = functional.cross_entropy(net(x, extra=comm.rank == 0), y)
            reducer.start_backward()
            (loss * reducer.loss_scale).backward()
        arrived: list[torch.Tensor] = []

        def keep(number: int, arrived: list[torch.Tensor] = arrived) -> None:
            assert number == len(arrived)
            arrived.append(reducer.flats()[number].clone())

        reducer.finish(keep)
        assert len(arrived) == (len(reducer.groups) if comm.size > 1 else 0) != 1
        assert all(map(torch.equal, arrived, reducer.flats()))
    tolerance = {"none": 1e-6, "fp16": 2e-3, "bf16": 1e-2}[compression]
    for (name, reference), parameter in zip(
        single.named_parameters(), net.parameters(), strict=True
    ):
        expected = reference.grad
        if expected is None:
            expected = torch.zeros_like(reference)
        worst = float((parameter.grad - expected).abs().max())
        assert worst <= tolerance, (name, worst)
        assert parameter.grad.stride() == parameter.stride(), name
    reducer.start_step(communicate=False)
    reducer.start_backward()
    net(images[mine], extra=False).sum().backward()
    before = [None if p.grad is None else p.grad.clone() for p in net.parameters()]
    reducer.finish()
    for p, kept in zip(net.parameters(), before, strict=True):
        assert torch.equal(p.grad, torch.zeros_like(p) if kept is None else kept)
    assert None in before


def check_bf16(comm: Comm) -> None:
    """Sums of bf16 numbers are exact in fp32, rounded once more, also far beyond the range of fp16; every rank has
    the same bits; a step that a rank refuses ends on all, and the next one is right."""
    p, rest = nn.Parameter(torch.zeros(1001)), nn.Parameter(torch.zeros(2))
    reducer = Reducer([rest, p], comm, compression="bf16", group_bytes=1.0)
    assert len(reducer.groups) == 2
    parts = [-(-count // comm.size) for count in (1001, 2)]
    sent = 2 * comm.size * sum(parts) if comm.size > 1 else 4 * 1003
    assert reducer.step_bytes == sent
    given = [1e30 * torch.randn(1001, generator=torch.Generator().manual_seed(r)) for r in range(9)]

    def step() -> None:
        reducer.start_step()
        reducer.start_backward()
        (((p * given[comm.rank]).sum() + rest.sum()) * reducer.loss_scale).backward()
        reducer.finish()

    def check_sums() -> None:
        step()
        rounded = [g * reducer.loss_scale for g in given[: comm.size]]
        if comm.size > 1:
            rounded = [g.bfloat16().float() for g in rounded]
        expected = torch.stack(rounded).sum(0)
        assert torch.equal(p.grad, expected.bfloat16().float() if comm.size > 1 else expected)
        assert (rest.grad - 1).abs().max() < 0.01
        rows = comm.gather(p.grad, "compare")
        assert torch.equal(rows, rows[:1].expand_as(rows))

    check_sums()
    if comm.size > 1 and comm.rank == comm.size - 1:
        reducer.refuse()
    elif comm.size > 1:
        try:
            step()
        except SumRefused:
            reducer.abandon()
        else:
            raise AssertionError("the step was not refused")
    check_sums()


if __name__ == "__main__":
    job = init_comm()
    check_bf16(job)
    for compression in ("none", "fp16", "bf16"):
        for accumulate in (1, 3):
            for last in (False, True):
                check(job, accumulate=accumulate, channels_last=last, compression=compression)
    assert any_rank(job, job.rank == job.size - 1)
    assert not any_rank(job, False)
    assert job.gather_text("é" * job.rank) == ["é" * rank for rank in range(job.size)]
    weights = {"a": torch.full((2, 3, 4, 4), float(job.rank)), "b": torch.tensor(job.rank)}
    weights["a"] = weights["a"].to(memory_format=torch.channels_last)
    job.broadcast_(weights)
    assert float(weights["a"].abs().max()) == int(weights["b"]) == 0
    job.shutdown()
