"""Extra time per step of `hvdtrain.watch`, in the plain DDP loop of docs/how-to/watch.md.

Two equal networks are trained on one batch in memory: one is watched as that page shows, with its metrics
endpoint and a report every `--log-every` steps, the other is not. They take turns step by step, so that what
else the machine does falls on both alike. The result is the median over rounds of the watched steps' time /
that of the others - 1. In one process without a launcher, or on each rank under torchrun:

    torchrun --nproc-per-node 2 benchmarks/watch_overhead.py
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Iterator

import torch
import torch.distributed as dist
from common import free_port, print_machine, print_result
from torch import nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

import hvdtrain
from hvdtrain.config.schema import Model
from hvdtrain.models import build_model


class Batches:
    """The same batch again and again."""

    def __init__(self, batch: tuple[torch.Tensor, torch.Tensor], count: int) -> None:
        self.batch, self.count = batch, count

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for _ in range(self.count):
            yield self.batch


class Loop:
    """One network with its optimizer."""

    def __init__(self, name: str, device: torch.device) -> None:
        torch.manual_seed(0)
        net = build_model(Model(name=name), 10).to(device)
        self.model: nn.Module = DistributedDataParallel(net) if dist.is_initialized() else net
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.001, momentum=0.9)

    def step(self, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """One update; returns the loss."""
        loss = functional.cross_entropy(self.model(images), labels)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss


def main() -> None:
    """Parse the arguments, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--log-every", type=int, default=20, help="steps of a round")
    parser.add_argument("--model", default="resnet11_cifar")
    parser.add_argument("--image-size", type=int, default=32)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    if "WORLD_SIZE" in os.environ:
        dist.init_process_group()
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    images = torch.randn(args.batch, 3, args.image_size, args.image_size, device=device)
    batch = images, torch.arange(args.batch, device=device) % 10
    watched, plain = Loop(args.model, device), Loop(args.model, device)
    steps = 1 + (args.rounds + 1) * args.log_every  # the first round warms up
    taken: list[list[float]] = [[], []]
    with tempfile.TemporaryDirectory() as output:
        watch = hvdtrain.watch.start(
            watched.model,
            batch_size=args.batch,
            output=output,
            log_every=args.log_every,
            optimizer=watched.optimizer,
            metrics={"port": free_port()},
        )
        batches = iter(watch.data(Batches(batch, steps)))
        steps_of = (
            lambda: watch.step(watched.step(*next(batches))),
            lambda: plain.step(*batch),
        )
        for number in range(steps):
            for which in (0, 1) if number % 2 else (1, 0):
                _synchronize(device)
                began = time.perf_counter()
                steps_of[which]()
                _synchronize(device)
                taken[which].append(time.perf_counter() - began)
        watch.close()
    ratios, milliseconds = [], []
    for begin in range(1 + args.log_every, steps, args.log_every):
        ours, bare = (sum(times[begin : begin + args.log_every]) for times in taken)
        ratios.append(ours / bare - 1)
        milliseconds.append(1e3 * bare / args.log_every)
    if not dist.is_initialized() or dist.get_rank() == 0:
        print_machine()
        result = {
            "overhead_ratio": statistics.median(ratios),
            "lowest": min(ratios),
            "highest": max(ratios),
            "step_ms": statistics.median(milliseconds),
            "rounds": args.rounds,
            "ranks": dist.get_world_size() if dist.is_initialized() else 1,
        }
        print_result(result)
    if dist.is_initialized():
        dist.destroy_process_group()


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    main()
