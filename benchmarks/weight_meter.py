"""Extra time per update of `metrics.weights`, which copies the weights before it and takes the norm of the change.

Two networks take turns at the same update, one of them measured. Times are of the processor, on one
thread, so that other programs on the machine change little; each is a median over the turns.
"""

from __future__ import annotations

import argparse
import time

import torch
from common import in_turn, print_machine, print_result, print_table, random_batch
from torch.nn import functional

from hvdtrain.engine.weight_meter import WeightMeter
from hvdtrain.models import MODELS


class Updates:
    """Makes updates of a network, measured or not."""

    def __init__(self, name: str, batch: int, *, measured: bool) -> None:
        torch.manual_seed(0)
        self.model = MODELS[name](num_classes=2)
        self.batch = random_batch(batch, 32, 2, channels_last=False)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.01, fused=True)
        self.meter = WeightMeter(self.model) if measured else None
        if self.meter is not None:
            self.meter.begin(0)

    def turn(self) -> float:
        """Milliseconds of processor time of one update."""
        began = time.thread_time()
        if self.meter is not None:
            self.meter.before_update()
        self.optimizer.zero_grad()
        functional.cross_entropy(self.model(self.batch.images), self.batch.labels).backward()
        self.optimizer.step()
        if self.meter is not None:
            self.meter.after_update()
        return 1e3 * (time.thread_time() - began)


def main() -> None:
    """Parse the arguments, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="vgg_sigmoid")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=60)
    args = parser.parse_args()

    torch.set_num_threads(1)
    turns = {
        name: Updates(args.model, args.batch, measured=measured).turn
        for name, measured in (("metrics.weights on", True), ("off", False))
    }
    in_turn(turns, rounds=3)
    times = in_turn(turns, args.rounds)
    print(f"{args.model}, 32 px, batch {args.batch}, fp32, 1 thread")
    print_machine()
    print_table("ms per update", times, digits=2)
    on, off = (sorted(values)[len(values) // 2] for values in times.values())
    print_result({"overhead": round(on / off - 1, 4)})


if __name__ == "__main__":
    main()
