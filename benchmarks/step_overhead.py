"""Extra time per step of hvdtrain's training loop, compared with a bare torch loop.

Both loops train the same network from the same weights with the same optimizer on one batch in
memory, in one process without Horovod. The bare loop does forward, loss, backward and update; it
counts, logs, exports and checks nothing. hvdtrain's loop is `train_epoch`, as `hvdtrain train`
calls it: accuracy and loss of every step, a report every `train.log_every` steps to the event file
and the console, Prometheus metrics, signals, the learning rate of every step.

The loops take turns. The result is the median over rounds of hvdtrain's time / the bare time - 1.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator

import torch
from common import (
    free_port,
    in_turn,
    median_ratio,
    memory_run,
    print_machine,
    print_result,
    print_table,
    random_batch,
    timed_epoch,
)
from torch.nn import functional

from hvdtrain.comm.ranks import Solo
from hvdtrain.config.load import parse_config
from hvdtrain.config.schema import Config
from hvdtrain.models import build_model
from hvdtrain.plan.epochs import Epoch
from hvdtrain.run.efficiency import Efficiency
from hvdtrain.run.prepare import Run
from pipelines.loader import Batch

CONFIG = """
name: step-overhead
model: {{name: {model}, num_classes: 10}}
optimizer: {{momentum: 0.9, nesterov: true, weight_decay: 5.0e-4}}
lr: {{base: 0.01, scaling: none, warmup: none, schedule: constant}}
phases: [{{epochs: 1000, image_size: {image_size}, batch_per_worker: {batch}}}]
train: {{precision: {precision}, channels_last: true, log_every: 20}}
metrics: {{port: {port}}}
"""
STEPS = 20
"""Steps of one turn; with the default `train.log_every` they include one report."""


class Bare:
    """Bare training loop, as in a torch tutorial."""

    def __init__(self, cfg: Config, batch: Batch, autocast: torch.dtype | None) -> None:
        assert cfg.model.num_classes is not None
        torch.manual_seed(cfg.seed)
        self.model = build_model(cfg.model, cfg.model.num_classes).train()
        self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.batch, self.autocast = batch, autocast
        params = list(self.model.parameters())
        self.optimizer = torch.optim.SGD(
            [
                {"params": [p for p in params if p.ndim > 1], "weight_decay": 5e-4},
                {"params": [p for p in params if p.ndim <= 1], "weight_decay": 0.0},
            ],
            lr=0.01,
            momentum=0.9,
            nesterov=True,  # not fused: that kernel is slower for channels_last
        )

    def turn(self) -> float:
        """Milliseconds per step, mean over `STEPS` steps."""
        images, labels = self.batch.images, self.batch.labels
        began = time.perf_counter()
        for _ in range(STEPS):
            with torch.autocast("cpu", self.autocast, enabled=self.autocast is not None):
                logits = self.model(images)
            loss = functional.cross_entropy(logits.float(), labels)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
        return 1e3 * (time.perf_counter() - began) / STEPS


class Product:
    """hvdtrain's own loop; one turn is one epoch of `STEPS` steps."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.efficiency = Efficiency(run)
        self.epochs: Iterator[Epoch] = iter(run.plan.epochs)

    def turn(self) -> float:
        """Milliseconds per step, mean over `STEPS` steps."""
        return 1e3 * timed_epoch(self.run, next(self.epochs), self.efficiency) / STEPS


def main() -> None:
    """Parse the arguments, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="fewer rounds: under a minute")
    parser.add_argument("--rounds", type=int, help="turns of each loop (default 40, quick 12)")
    parser.add_argument("--model", default="resnet11_cifar")
    parser.add_argument("--image-size", type=int, default=32)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="bf16")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    cfg = parse_config(CONFIG.format(port=free_port(), **vars(args)))
    batch = random_batch(args.batch, args.image_size, 10, channels_last=True)
    with memory_run(cfg, Solo(), batch, STEPS) as run:
        turns = {
            "hvdtrain": Product(run).turn,
            "bare torch": Bare(cfg, batch, run.state.settings.autocast).turn,
        }
        in_turn(turns, rounds=2)  # warmup: the first steps choose kernels and allocate memory
        times = in_turn(turns, args.rounds or (12 if args.quick else 40))

    print(
        f"{args.model}, {args.image_size} px, batch {args.batch}, {args.precision}, channels_last"
    )
    print(f"1 process, {args.threads} threads, turns of {STEPS} steps")
    print_machine()
    print_table("ms per step", times, digits=2)
    overhead = median_ratio(times["hvdtrain"], times["bare torch"]) - 1
    print_result({"overhead": round(overhead, 4)})


if __name__ == "__main__":
    main()
