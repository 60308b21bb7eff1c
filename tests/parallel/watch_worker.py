"""Watch plain DDP loops with one thing made slow, one after the other; rank 0 keeps what each has found."""

from __future__ import annotations

import json
import sys
import threading
import time
import urllib.request
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset

import hvdtrain

STEP_S, SLOW_S = 0.1, 0.5
"""Every step computes at least STEP_S, so that other losses are small beside SLOW_S, the injected one."""
STEPS = 9
"""The first one does not count."""
BATCH = 4


class Images(Dataset[tuple[torch.Tensor, int]]):
    """Noise, read as from a disk that serves one image at a time, in `seconds`."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def __len__(self) -> int:
        return BATCH * STEPS

    def __getitem__(self, number: int) -> tuple[torch.Tensor, int]:
        time.sleep(self.seconds)
        return torch.full((3, 16, 16), number / 100), number % 10


class Net(nn.Module):
    """A small network with batch norm, whose buffers DDP takes from rank 0 before each forward pass."""

    def __init__(self, seconds: float, width: int) -> None:
        super().__init__()
        self.seconds = seconds
        self.layers = nn.Sequential(
            *(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten()),
            *(nn.Linear(8 * 14 * 14, width), nn.Linear(width, 10)),
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        time.sleep(self.seconds)
        logits: torch.Tensor = self.layers(images)
        return logits


def late_sum(group, bucket):  # type: ignore[no-untyped-def]
    """A communication hook that sums as over a slow link; torch refuses annotations as text."""
    buffer = bucket.buffer().div_(dist.get_world_size(group))
    work = dist.all_reduce(buffer, group=group, async_op=True)
    late: torch.futures.Future[torch.Tensor] = torch.futures.Future()

    def arrive() -> None:
        work.wait()
        time.sleep(SLOW_S if bucket.is_last() else 0.0)
        late.set_result(buffer)

    threading.Thread(
        target=arrive
    ).start()  # a callback of the sum may run at once, within backward
    return late


def watched_loop(slow: str, out: Path, *, width: int = 8) -> None:
    """One epoch in which `slow` is slow."""
    rank = dist.get_rank()
    place = {"rank 1": 1, "data of rank 0": 0, "data of rank 1": 1}.get(slow)
    data_s = SLOW_S / BATCH if slow == "data" or ("data" in slow and rank == place) else 0.0
    late_s = SLOW_S if slow == "rank 1" and rank == place else 0.0
    torch.manual_seed(1)
    model = DistributedDataParallel(Net(STEP_S + late_s, width))
    if slow == "hook":
        model.register_comm_hook(None, late_sum)
    loader = DataLoader(Images(data_s), batch_size=BATCH)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    with hvdtrain.watch.start(
        model,
        batch_size=BATCH,
        name=slow.replace(" ", "-"),
        output=out,
        log_every=STEPS - 1,
        optimizer=optimizer,
        metrics={"port": 25400, "enabled": slow != "link"},
    ) as watch:
        for images, labels in watch.data(loader):
            loss = nn.functional.cross_entropy(model(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            watch.step(loss)
        if rank == 0 and slow == "rank 1":
            pages = {
                path: urllib.request.urlopen(f"http://127.0.0.1:{watch.port}{path}").read().decode()
                for path in ("/metrics", "/", "/api/live")
            }
            (watch.run_dir / "pages.json").write_text(json.dumps(pages))


if __name__ == "__main__":
    dist.init_process_group("gloo")
    for name in sys.argv[2:]:
        watched_loop(name, Path(sys.argv[1]), width=2400 if name == "link" else 8)
    dist.destroy_process_group()
