"""Training throughput on real images, divided by that on one batch in memory.

    python benchmarks/real_synthetic.py --images DIR

One process trains a network in turns: on the batches of hvdtrain's loader, and on one of these
batches again and again. The ratio is 1 if the loader keeps up with the device. The last line is
{"real": images/s, "synthetic": images/s, "ratio": median over rounds}.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import torch
from common import in_turn, median_ratio, print_machine, print_result, print_table
from loader_data import link
from torch.nn import functional

from hvdtrain.config.schema import Data, Model
from hvdtrain.models import build_model
from pipelines.loader import Batch, Loaders


class Trainer:
    """Bare training loop: forward in bf16 and channels_last, loss, backward, update."""

    def __init__(self, args: argparse.Namespace, classes: int) -> None:
        self.device = torch.device(args.device)
        model = build_model(Model(name=args.model), classes).to(self.device).train()
        self.model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, fused=True)

    def images_per_s(self, batches: Iterator[Batch], steps: int) -> float:
        """Images per second over `steps` steps, until the last kernel has finished."""
        self._wait()
        count, began = 0, time.perf_counter()
        for batch in itertools.islice(batches, steps):
            with torch.autocast(self.device.type, torch.bfloat16):
                loss = functional.cross_entropy(self.model(batch.images), batch.labels)
            self.optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()
            count += len(batch.labels)
        self._wait()
        return count / (time.perf_counter() - began)

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def forever(loaders: Loaders, size: int, batch: int) -> Iterator[Batch]:
    """Yield training batches, epoch after epoch, without end."""

    def epoch(index: int) -> SimpleNamespace:
        shape = {"image_size": size, "val_image_size": size, "batch_per_worker": batch}
        steps = -(-loaders.num_train // batch)
        crop = {"min_crop_area": 0.08, "crop_aspect": None, "interpolation": "bilinear"}
        return SimpleNamespace(index=index, **shape, **crop, accumulate=1, start=0, steps=steps)

    for index in itertools.count():
        for _i, one in loaders.train(epoch(index), epoch(index + 1)):
            yield one


def main() -> None:
    """Parse the arguments, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--images", type=Path, required=True, help="JPEGs, or a packed dataset")
    parser.add_argument("--model", default="resnet50")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--quick", action="store_true", help="fewer and shorter rounds")
    parser.add_argument("--steps", type=int, help="steps per turn (default 100, quick 20)")
    parser.add_argument("--rounds", type=int, help="turns of each kind (default 5, quick 3)")
    parser.add_argument("--threads", type=int, help="decoding threads (default: all cores)")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda")
    args = parser.parse_args()
    args.steps = args.steps or (20 if args.quick else 100)
    args.rounds = args.rounds or (3 if args.quick else 5)

    with tempfile.TemporaryDirectory(prefix="hvdtrain-benchmark-") as folder:
        data = args.images
        if not (data / "dataset.json").is_file():
            data = link(data, Path(folder) / "original", most=10**9)
        config = Data(train=str(data), decode_threads=args.threads)
        device = torch.device(args.device)
        with Loaders(config, seed=0, rank=0, world_size=1, device=device) as loaders:
            trainer = Trainer(args, len(loaders.classes))
            real = forever(loaders, args.image_size, args.batch)
            kept = itertools.repeat(next(real))
            turns = {
                "real": lambda: trainer.images_per_s(real, args.steps),
                "synthetic": lambda: trainer.images_per_s(kept, args.steps),
            }
            in_turn(turns, rounds=1)
            speeds = in_turn(turns, args.rounds)
    print(f"{args.model}, {args.image_size} px, batch {args.batch}, bf16, {args.device}")
    print_machine()
    print_table("images/s", speeds, digits=0)
    medians = {name: round(statistics.median(values), 1) for name, values in speeds.items()}
    ratio = median_ratio(speeds["real"], speeds["synthetic"])
    print_result({**medians, "ratio": round(ratio, 4)})


if __name__ == "__main__":
    main()
