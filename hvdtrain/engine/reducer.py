"""Gradients summed over all ranks while the backward pass still runs.

Every gradient is a view into one of a few flat buffers. A buffer is sent as soon as its last
gradient is ready; the next ones are computed meanwhile. A parameter that got no gradient leaves
zeros, so all ranks always send the same buffers.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from typing import Literal

import torch
from torch import nn

from hvdtrain.comm.ranks import Comm
from hvdtrain.engine.compression.bf16 import Bf16Sum
from hvdtrain.engine.compression.exchange import Exchange, PlainSum
from hvdtrain.engine.compression.powersgd import LowRankSum, PowerSGD
from hvdtrain.engine.gradient_groups import group_limit
from hvdtrain.engine.stopwatch import StepClock

Compression = Literal["none", "fp16", "bf16", "powersgd"]
"""How gradients are sent, see `comm.compression`."""
_BLOCK = 2**16


class _Group:
    """Parameters whose gradients share one flat buffer, fp32 [numel]."""

    exchange: Exchange
    """How the buffer is summed over ranks."""

    def __init__(self, name: str, params: list[nn.Parameter]) -> None:
        self.name = name
        self.params = params
        size = sum(p.numel() for p in params)
        self.flat = torch.zeros(size, dtype=params[0].dtype, device=params[0].device)
        self.waiting_for = len(params)
        self.places: dict[nn.Parameter, torch.Tensor] = {}
        """The view into `flat` of each gradient."""
        offset = 0
        for p in params:
            # The gradient takes its parameter's strides, so channels_last stays as it is.
            self.places[p] = self.flat[offset : offset + p.numel()].as_strided(
                p.size(), p.stride(), self.flat.storage_offset() + offset
            )
            offset += p.numel()
        self.complete()

    def clear(self) -> None:
        """Drop all gradients. Only those of frozen parameters are set to zero, since backward
        will not write them before the group is sent."""
        for p, place in self.places.items():
            p.grad = None if p.requires_grad else place.zero_()

    def take(self, p: nn.Parameter) -> None:
        """Copy a gradient that autograd allocated into its view; later ones are added there."""
        place = self.places[p]
        if p.grad is not None and p.grad is not place:
            place.copy_(p.grad)
            p.grad = place

    def complete(self) -> None:
        """Set to zero the gradients that backward did not compute."""
        for p, place in self.places.items():
            if p.grad is None:
                place.zero_()
                p.grad = place


class Reducer:
    """Averages gradients over ranks and micro-batches.

    The loss handed to `backward` must be multiplied by `loss_scale`: dividing there costs
    nothing and keeps sums in fp16 from overflowing. Between `start_step` and `finish` gradients
    are this rank's; after `finish` they are the mean over the global batch, equal on all ranks.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        comm: Comm,
        *,
        accumulate: int = 1,
        compression: Compression = "none",
        rank: int = 4,
        seed: int = 0,
        group_bytes: float = 16 * 2**20,
    ) -> None:
        """`rank` and `seed`: of PowerSGD, which compresses on a single rank, too."""
        self.comm = comm
        self.accumulate = accumulate
        self.loss_scale = 1.0 / (comm.size * accumulate)
        # Gradients arrive in about the reverse order of the parameters.
        trained = [p for p in params if p.requires_grad][::-1]
        self.clock = StepClock(trained[0].device if trained else torch.device("cpu"))
        """Seconds of backward passes and of communication."""
        self.bytes_sent = 0
        """Bytes of gradients handed to allreduce, since the start of the run."""
        self.calls = 0
        """Allreduces of gradients since the start of the run."""
        self._enabled = True
        self._measuring = False
        self._squares: list[list[torch.Tensor]] = []
        self._before: list[torch.Tensor] = []
        self._backward_left = accumulate
        self._next = 0
        """The first group of this step that is not sent."""
        self.memory = PowerSGD(trained, rank, seed) if compression == "powersgd" else None
        """What PowerSGD keeps from step to step; None without it."""
        self.groups = [
            _Group(f"grad.{index}", members)
            for index, members in enumerate(_split(trained, group_bytes))
        ]
        for number, group in enumerate(self.groups):
            group.exchange = self._exchange(group, compression)
            for p in group.params:
                p.register_post_accumulate_grad_hook(self._hook(number))

    def start_step(self, *, communicate: bool = True, measure: bool = False) -> None:
        """Drop all gradients; with `communicate=False` this step's are not summed over ranks.

        `measure`: record what `part_squares` returns; the gradients are the same either way.
        """
        self._enabled = communicate and (self.comm.size > 1 or self.memory is not None)
        self._measuring = measure
        self._squares = [[]] if self._enabled else []
        self._backward_left = self.accumulate
        self._next = 0
        for group in self.groups:
            group.clear()

    def start_backward(self) -> None:
        """Call before each micro-batch's backward pass; the last one sends the gradients."""
        self._backward_left -= 1
        for group in self.groups:
            group.waiting_for = sum(p.requires_grad for p in group.params)
        if self._measuring and not self._enabled and self._squares:
            self._before = [flat.clone() for flat in self.flats()]
        self.clock.backward.start()

    def end_backward(self) -> None:
        """Call after each micro-batch's backward pass."""
        self.clock.backward.stop()
        if self._measuring and not self._enabled:
            self._complete()
            parts = self.flats()
            if self._squares:  # before the first micro-batch all gradients are zero
                torch._foreach_sub_(self._before, parts)
                parts, self._before = self._before, []
            self._squares.append([square(part) for part in parts])

    def finish(self, arrived: Callable[[int], object] | None = None) -> None:
        """Send the remaining groups and wait for all; raises CommError if a rank is gone.

        `arrived(k)` is called when the gradients of `groups[k]` are summed, while later groups may
        still be in flight. On a single rank without compression it is not called.
        """
        self._complete()
        if not self._enabled:
            return
        for group in self.groups:
            if not group.exchange.in_flight:
                self._send(group)
        last = len(self.groups) - 1
        for number, group in enumerate(self.groups):
            self.clock.waiting.start()
            for near in self.groups[number : number + 2]:
                near.exchange.follow()
            group.exchange.wait()
            self.clock.waiting.stop(pause=number < last)
            if number == last:
                self.clock.flight.stop()
            if arrived is not None:
                group.exchange.settle()
                arrived(number)
        if arrived is None:
            for group in self.groups:
                group.exchange.settle()

    def refuse(self) -> None:
        """In place of a step: let the others' sums of it end with SumRefused, on all ranks."""
        offers = {group: group.exchange.offers() for group in self.groups}
        others = [k for group in offers if group.exchange.by_all_to_all for k in offers[group]]
        self.comm.refuse({k: wire for one in offers.values() for k, wire in one.items()}, others)

    def abandon(self) -> None:
        """After an error of `finish`: wait for what is still in flight, which ends with errors, too."""
        for group in self.groups:
            group.exchange.abandon()

    @property
    def step_bytes(self) -> int:
        """Bytes of gradients that one update hands to allreduce."""
        return sum(group.exchange.step_bytes for group in self.groups)

    def flats(self) -> list[torch.Tensor]:
        """The flat gradient buffers, for norms and checks over all gradients at once."""
        return [group.flat for group in self.groups]

    def part_squares(self) -> torch.Tensor:
        """‖·‖² of each part of the gradient, after a measured step, [parts] float64.

        With several ranks there is one part, this rank's share of the global gradient; on a single
        rank each micro-batch is a part.
        """
        return torch.stack([torch.stack(squares).sum() for squares in self._squares])

    def _complete(self) -> None:
        for group in self.groups:
            group.complete()

    def _hook(self, number: int):  # type: ignore[no-untyped-def]
        # A hook that held the reducer would hold its parameters, and these the hook, by references that
        # Python cannot see: no model would ever be freed.
        alive = weakref.ref(self)

        def ready(p: torch.Tensor) -> None:
            assert isinstance(p, nn.Parameter)
            reducer = alive()
            if reducer is None:
                return
            group = reducer.groups[number]
            group.take(p)
            group.waiting_for -= 1
            if reducer._enabled and reducer._backward_left == 0:
                reducer._send_ready()

        return ready

    def _send_ready(self) -> None:
        """Send the groups that are complete, each after those before it: torch.distributed needs the same
        order on all ranks, and which gradient is ready first may differ between them."""
        while self._next < len(self.groups) and self.groups[self._next].waiting_for == 0:
            self._send(self.groups[self._next])
            self._next += 1

    def _send(self, group: _Group) -> None:
        if not any(other.exchange.in_flight for other in self.groups):
            self.clock.flight.start()
        if self._measuring:
            self._squares[0].append(square(group.flat))
        if self.comm.size > 1:
            self.calls += group.exchange.step_calls
            self.bytes_sent += group.exchange.step_bytes
        group.exchange.begin()

    def _exchange(self, group: _Group, compression: Compression) -> Exchange:
        if self.memory is not None:
            return LowRankSum(self.comm, group.name, group.places, self.memory)
        if compression == "bf16" and self.comm.size > 1:
            return Bf16Sum(self.comm, group.name, group.flat)
        wire = torch.float16 if compression == "fp16" and self.comm.size > 1 else None
        return PlainSum(self.comm, group.name, group.flat, wire)


def square(flat: torch.Tensor) -> torch.Tensor:
    """‖flat‖², a float64 scalar on the device, with a relative error of about 1e-6.

    Summed in blocks: the error of torch's fp32 sum on a CPU grows with the length, and a float64
    sum takes twenty times as long.
    """
    norms = torch.stack(torch._foreach_norm(flat.split(_BLOCK)))
    return norms.double().square().sum()


def _split(params: list[nn.Parameter], group_bytes: float) -> list[list[nn.Parameter]]:
    """Consecutive parameters of one dtype and device; a group is closed once it reaches its limit."""
    groups: list[list[nn.Parameter]] = []
    size = 0.0
    for p in params:
        like = groups and (groups[-1][0].dtype, groups[-1][0].device) == (p.dtype, p.device)
        if not like or size >= group_limit(len(groups) - 1, group_bytes):
            groups.append([])
            size = 0.0
        groups[-1].append(p)
        size += p.numel() * p.element_size()
    return groups
