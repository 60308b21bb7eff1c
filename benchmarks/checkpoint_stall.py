"""How long training waits for a checkpoint, beside a plain copy of the state and torch's own ways to save.

The state is that of `--model` with SGD and momentum. Each way saves it in turn, and then a few steps of
matrix products follow, as long as the file is being written: what they take beyond their usual time is
the slow-down by the writer.

plain copy: every tensor into memory that is kept for it. hvdtrain: `Snapshots.save`, as the training loop
calls it, with a check for NaN, the copy, and a thread that hashes, writes and syncs. torch.save: with
fsync. async_save: torch.distributed.checkpoint, one process, which writes in a thread as well.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from common import free_port, in_turn, median_ratio, print_machine, print_result, print_table
from torch.distributed import checkpoint as dcp

from hvdtrain.checkpoint_keep import Keep
from hvdtrain.comm.ranks import Solo
from hvdtrain.config.load import parse_config
from hvdtrain.engine.build import choose_device, init_state
from hvdtrain.engine.checkpoint import contents
from hvdtrain.engine.step import State
from hvdtrain.paths import RunPaths
from hvdtrain.run.snapshots import Cadence, Snapshots

CONFIG = """
name: checkpoint-stall
model: {{name: {model}, num_classes: 1000}}
phases: [{{epochs: 1, image_size: 64, batch_per_worker: 8}}]
"""
TURNS = ("plain copy", "hvdtrain", "torch.save", "async_save")


class Steps:
    """Stands for training: products of matrices, one step about 20 ms on a core."""

    def __init__(self, device: torch.device) -> None:
        self._a = torch.rand(1200, 1200, device=device)

    def run(self, busy: Callable[[], bool], at_least: int) -> list[float]:
        """Milliseconds of each step, as long as `busy`."""
        times: list[float] = []
        while len(times) < at_least or busy():
            began = time.perf_counter()
            (self._a @ self._a).sum().item()
            times.append(1e3 * (time.perf_counter() - began))
        return times


class Contestants:
    """The ways to save; each returns the milliseconds for which its caller waits."""

    def __init__(self, state: State, folder: Path) -> None:
        self._state, self._folder = state, folder
        self._steps = Steps(state.settings.device)
        self._kept: list[torch.Tensor] = []
        self.lost: dict[str, list[float]] = {name: [] for name in TURNS}
        """Milliseconds by which the steps took longer while the writer worked."""
        self.written: dict[str, list[float]] = {name: [] for name in TURNS}
        """Milliseconds until the file was complete."""
        paths = RunPaths(folder / "run")
        paths.create()
        paths.config.touch()
        sinks: Any = SimpleNamespace(write=lambda _: None)
        cadence = Cadence(parse_config(CONFIG.format(model="resnet18")).checkpoint)
        self._snapshots = Snapshots(state, paths, sinks, cadence, {}, {}, Keep(1))

    def _tensors(self) -> dict[str, torch.Tensor]:
        files = contents(self._state)
        return {f"{file}/{name}": t for file, part in files.items() for name, t in part.items()}

    def _turn(self, name: str, save: Callable[[], Callable[[], bool]]) -> float:
        usual = statistics.median(self._steps.run(lambda: False, 5))
        began = time.perf_counter()
        busy = save()
        stall_ms = 1e3 * (time.perf_counter() - began)
        times = self._steps.run(busy, 0)
        self.written[name].append(1e3 * (time.perf_counter() - began))
        self.lost[name].append(sum(times) - usual * len(times))
        return stall_ms

    def turns(self) -> dict[str, Callable[[], float]]:
        """By name."""
        ways = (self._copy, self._hvdtrain, self._torch_save, self._async_save)
        return {name: partial(self._turn, name, way) for name, way in zip(TURNS, ways, strict=True)}

    def _copy(self) -> Callable[[], bool]:
        tensors = list(self._tensors().values())
        if not self._kept:
            pinned = tensors[0].is_cuda
            self._kept = [torch.empty_like(t, device="cpu", pin_memory=pinned) for t in tensors]
        for kept, tensor in zip(self._kept, tensors, strict=True):
            kept.copy_(tensor, non_blocking=True)
        if tensors[0].is_cuda:
            torch.cuda.synchronize()
        return lambda: False

    def _hvdtrain(self) -> Callable[[], bool]:
        self._snapshots.save()
        return lambda: self._snapshots.writer.busy

    def _torch_save(self) -> Callable[[], bool]:
        with (self._folder / "torch.pt").open("wb") as file:
            torch.save(self._tensors(), file)
            file.flush()
            os.fsync(file.fileno())
        return lambda: False

    def _async_save(self) -> Callable[[], bool]:
        target = self._folder / "dcp"
        shutil.rmtree(target, ignore_errors=True)
        writer = dcp.FileSystemWriter(target, sync_files=True)
        done: Any = dcp.async_save(self._tensors(), storage_writer=writer)
        return lambda: not done.done()


def main() -> None:
    """Parse the arguments, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="resnet50")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1, help="that compute, on a CPU")
    parser.add_argument("--folder", type=Path, help="where to write (default: TMPDIR)")
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    address = f"tcp://127.0.0.1:{free_port()}"
    torch.distributed.init_process_group("gloo", address, rank=0, world_size=1)
    device = choose_device(Solo())
    cfg = parse_config(CONFIG.format(model=args.model))
    state = init_state(cfg, Solo(), device, num_classes=1000)
    with tempfile.TemporaryDirectory(prefix="hvdtrain-benchmark-", dir=args.folder) as folder:
        contestants = Contestants(state, Path(folder))
        turns = contestants.turns()
        in_turn(turns, rounds=1)
        for figures in (contestants.lost, contestants.written):
            for values in figures.values():
                values.clear()
        stalls = in_turn(turns, args.rounds)
    torch.distributed.destroy_process_group()

    sizes = [
        t.numel() * t.element_size() for part in contents(state).values() for t in part.values()
    ]
    print(f"{args.model}, {sum(sizes) / 1e6:.0f} MB of state on {device.type}")
    print_machine()
    print_table("ms that training waits", stalls)
    print_table("ms until complete", contestants.written)
    print_table("ms lost while writing", contestants.lost)
    ratio = median_ratio(stalls["hvdtrain"], stalls["plain copy"])
    medians = {name: round(statistics.median(values), 1) for name, values in stalls.items()}
    print_result({"stall_ms": medians, "hvdtrain_by_copy": round(ratio, 2)})


if __name__ == "__main__":
    main()
