"""Runs whose mirror is in an object store that can be made to fail."""

from __future__ import annotations

import shutil
from pathlib import Path

from hvdtrain.checkpoint_keep import Keep
from hvdtrain.engine.checkpoint import Tensors, contents, metadata, write_checkpoint
from hvdtrain.engine.progress import Progress
from hvdtrain.engine.step import State
from hvdtrain.paths import RunPaths
from hvdtrain.plan.epochs import Position
from hvdtrain.run.mirror import Mirror, bring_back
from tests.unit.run.shaky_store import ShakyStore

URL = "memory://bucket/some/runs"
ROOT = "bucket/some/runs/run"
ONE, TWO, THREE = (f"e000{epoch}-s0000000000" for epoch in (1, 2, 3))
FILES = ["meta.json", "model.safetensors", "optimizer.safetensors"]


def save(
    run: Path,
    state: State,
    epoch: int,
    keep: int = 1,
    seconds: float = 0.0,
    more: Tensors | None = None,
) -> None:
    """Write a checkpoint, with `more` files, and the description of the run."""
    run.mkdir(exist_ok=True)
    (run / "config.yaml").write_text("name: run\n")
    state.progress = Progress(Position(epoch, 0), train_seconds=seconds)
    files = contents(state) | (more or {})
    write_checkpoint(files, metadata(state, {}), run / "checkpoints", Keep(keep))


def update(run: Path, keep: int = 1) -> list[str]:
    """Bring the mirror up to date, as a new attempt does; what there is to tell."""
    mirror = Mirror(RunPaths(run), URL, Keep(keep))
    mirror.start()
    mirror.finish()
    return mirror.notes()


def stored() -> list[str]:
    """Names of the files of checkpoints in the store."""
    return sorted(path.removeprefix(f"{ROOT}/checkpoints/") for path in checkpoint_files())


def checkpoint_files() -> list[str]:
    return [path for path in ShakyStore.objects if path.startswith(f"{ROOT}/checkpoints/")]


def whole(*names: str) -> list[str]:
    return [f"{name}/{file}" for name in names for file in FILES]


def fail(operation: str, error: BaseException, path: str = "") -> None:
    """Let each such operation fail."""

    def fault(done: str, where: str) -> None:
        if done == operation and path in where:
            raise error

    ShakyStore.fault = staticmethod(fault)


def lose(run: Path) -> list[str]:
    """Lose the run directory, and bring back what the mirror has."""
    shutil.rmtree(run)
    return bring_back(RunPaths(run), URL)
