"""Gradients of pairs of batches at the weights of a member: how much of them cancels when they are added.

A batch of twice the size has the mean of two gradients. By the triangle inequality its norm is at most
the mean of their norms, and equal only where they point in the same direction.
"""

from __future__ import annotations

import itertools
from dataclasses import asdict, dataclass
from pathlib import Path

import safetensors.torch
import torch
from torch.nn import functional

from hvdtrain import activity
from hvdtrain.checkpoint_files import MODEL_FILE, list_checkpoints, read_meta, verify
from hvdtrain.comm.ranks import Solo
from hvdtrain.config.schema import Config
from hvdtrain.engine.build import Parts, set_up
from hvdtrain.engine.checkpoint import checkpoint_name
from hvdtrain.errors import CheckpointError
from hvdtrain.plan.epochs import Position

PAIRS = 8


@dataclass(frozen=True)
class Pairs:
    """Means over pairs of batches a, b of `batch` images each."""

    batch: int
    pairs: int
    together: float
    """|a + b| / 2"""
    apart: float
    """(|a| + |b|) / 2"""
    noise_scale: float | None
    """In images, from the squares of these norms; None where they show no signal."""

    @property
    def ratio(self) -> float:
        """1: they point in one direction; 0.71: they have nothing in common."""
        return self.together / self.apart if self.apart else float("nan")

    def as_dict(self) -> dict[str, float | None]:
        """For `study.json`."""
        return {**asdict(self), "ratio": self.ratio}


def best_checkpoint(run: Path) -> Path:
    """The checkpoint of the lowest validation loss, else the newest. Raises CheckpointError."""
    found = list_checkpoints(run / "checkpoints")
    if not found:
        raise CheckpointError(f"{run}: no checkpoint")
    losses = [(loss, path) for path in found if (loss := read_meta(path).get("loss")) is not None]
    return min(reversed(losses), key=lambda pair: pair[0], default=(0.0, found[0]))[1]


def start_checkpoint(run: Path) -> Path:
    """The checkpoint before the first update. Raises CheckpointError if the run has not kept it."""
    path = run / "checkpoints" / checkpoint_name(Position())
    if not path.is_dir():
        raise CheckpointError(f"{run}: no {path.name}: train with checkpoint.keep_start=true")
    return path


def measure(cfg: Config, checkpoints: dict[str, Path], pairs: int = PAIRS) -> dict[str, Pairs]:
    """The pairs at each of `checkpoints` of a run with the config `cfg`, on one process.

    The batches are the first ones of its first epoch, as it was trained, of one rank's images or all.
    """
    with set_up(cfg, Solo()) as parts:
        found = {}
        for name, path in checkpoints.items():
            activity.enter(f"gradients at {name}")
            verify(path)
            parts.state.model.load_state_dict(safetensors.torch.load_file(path / MODEL_FILE))
            found[name] = _pairs(parts, pairs)
        return found


def _pairs(parts: Parts, pairs: int) -> Pairs:
    epoch = parts.plan.epochs[0]
    whole = epoch.global_batch_size
    wanted = min(2 * pairs, epoch.num_samples // whole)
    batches = (batch for _i, batch in parts.loaders.train(epoch))
    sums: list[tuple[float, float, float, float]] = []
    state = parts.state
    state.model.train()
    parameters = [p for p in state.model.parameters() if p.requires_grad]
    before: torch.Tensor | None = None
    for batch in itertools.islice(batches, wanted - wanted % 2):
        loss = functional.cross_entropy(state.forward(batch.images), batch.labels)
        flat = torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)]).double()
        if before is None:
            before = flat
            continue
        a, b, mean = before.norm(), flat.norm(), (before + flat).norm() / 2
        sums.append(((a + b).item() / 2, mean.item(), (a**2 + b**2).item() / 2, (mean**2).item()))
        before = None
    if not sums:
        return Pairs(whole, 0, float("nan"), float("nan"), None)
    apart, together, small, big = (sum(column) / len(sums) for column in zip(*sums, strict=True))
    return Pairs(whole, len(sums), together, apart, noise_scale(whole, small, big))


def noise_scale(batch: int, small: float, big: float) -> float | None:
    """Of |g|² over batches of `batch` images and of twice as many.

    Source: McCandlish et al. 2018, https://arxiv.org/abs/1812.06162, appendix A.1.
    """
    signal = 2 * big - small  # (2b·S - b·s) / (2b - b)
    trace = (small - big) / (1 / batch - 1 / (2 * batch))
    return trace / signal if signal > 0 else None
