"""Time of one comparison of weights and optimizer state over ranks, as a share of the minute between two.

Start it alone or under mpirun. The state is that of `--model` with SGD and momentum, and with averaged
weights if `--ema` is given. Times are from the call to the result on rank 0, which waits for the
device and for the slowest rank; a plain copy of the same memory is timed beside it.
"""

from __future__ import annotations

import argparse
import time

import torch
from common import in_turn, print_machine, print_result, print_table

from hvdtrain.comm.start import init_comm
from hvdtrain.config.load import parse_config
from hvdtrain.engine.build import choose_device, init_state
from hvdtrain.engine.checkpoint import contents
from hvdtrain.run.guard.divergence import PACE_S, gather_digests

CONFIG = """
name: divergence
model: {{name: {model}, num_classes: 1000}}
phases: [{{epochs: 1, image_size: 64, batch_per_worker: 8}}]
train: {{ema_decay: {ema}}}
"""


def main() -> None:
    """Parse the arguments, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="resnet50")
    parser.add_argument("--ema", action="store_true", help="keep averaged weights as well")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--threads", type=int, default=1, help="of each rank, on a CPU")
    args = parser.parse_args()

    comm = init_comm()
    torch.set_num_threads(args.threads)
    cfg = parse_config(CONFIG.format(model=args.model, ema=0.999 if args.ema else "null"))
    device = choose_device(comm)
    state = init_state(cfg, comm, device, num_classes=1000)
    tensors = [tensor for file in contents(state).values() for tensor in file.values()]
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    def compare() -> float:
        began = time.perf_counter()
        rows, _ = gather_digests(state)
        seconds = time.perf_counter() - began
        assert len(set(rows)) == 1
        return 1e3 * seconds

    def copy() -> float:
        began = time.perf_counter()
        copies = [tensor.clone() for tensor in tensors]
        if device.type == "cuda":
            torch.cuda.synchronize()
        del copies
        return 1e3 * (time.perf_counter() - began)

    turns = {"comparison": compare, "copy": copy}
    in_turn(turns, rounds=2)
    times = in_turn(turns, args.rounds)
    if comm.rank == 0:
        print(f"{args.model}, {size / 1e6:.0f} MB of state, {comm.size} ranks on {device.type}")
        print_machine()
        print_table("ms", times, digits=2)
        median = sorted(times["comparison"])[len(times["comparison"]) // 2]
        print_result({"ms": round(median, 2), "share": round(median / 1e3 / PACE_S, 6)})
    comm.shutdown()


if __name__ == "__main__":
    main()
