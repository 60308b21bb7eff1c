"""A checkpoint: verified, with the config of its run, and as a network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hvdtrain import activity
from hvdtrain.comm.agreement import require_equal, together
from hvdtrain.comm.ranks import Comm
from hvdtrain.config.networks import as_made
from hvdtrain.config.schema import Config
from hvdtrain.engine.checkpoint import verify
from hvdtrain.engine.checkpoint_tensors import load_weights_alone
from hvdtrain.errors import CheckpointError
from hvdtrain.models import build_model
from hvdtrain.models.freezing import train_in_any_phase
from hvdtrain.plan.epochs import Epoch, make_plan
from hvdtrain.run.evaluation import config_of, find_checkpoint


@dataclass(frozen=True)
class Subject:
    """A verified checkpoint and the config of its run."""

    path: Path
    name: str
    """Of the run and of the checkpoint."""
    meta: dict[str, Any]
    cfg: Config

    @property
    def classes(self) -> list[str]:
        """The names of the classes; empty if an old version wrote the checkpoint."""
        return list(self.meta.get("data", {}).get("classes", []))

    @property
    def num_classes(self) -> int:
        """0 if it is not known."""
        return len(self.classes) or int(self.meta["labels"].get("classes", 0))

    @property
    def averaged(self) -> bool:
        """Whether the weights are the averages over time that the run keeps, as `hvdtrain eval` takes
        them."""
        return self.cfg.train.ema_decay is not None

    @property
    def epoch(self) -> Epoch:
        """The epoch whose evaluation is the one of this checkpoint, as in `hvdtrain eval`."""
        largest = max(phase.batch_per_worker for phase in self.cfg.phases)
        plan = make_plan(self.cfg, 1, largest * self.cfg.train.accumulate)
        done = int(self.meta["position"]["epoch"])
        return plan.epochs[min(max(done - 1, 0), len(plan.epochs) - 1)]

    @property
    def about(self) -> dict[str, Any]:
        """What results say of it."""
        found = {"checkpoint": str(self.path), "name": self.name, **self.meta["position"]}
        return {**found, "step": self.meta["step"], "averaged_weights": self.averaged}

    def network(self, device: torch.device, *, averaged: bool = True) -> nn.Module:
        """The network with the checkpoint's weights; parameters that no phase trains are frozen. `averaged`: with
        their averages, if the run keeps them.

        Raises CheckpointError if the weights are of another model than the config says.
        """
        cfg = self.cfg
        if not self.num_classes:
            raise CheckpointError(f"{self.path}: does not say how many classes it has")
        model = build_model(cfg.model, self.num_classes).to(device)
        train_in_any_phase(model, cfg)
        if cfg.train.channels_last:
            model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.load(model, averaged=averaged)
        return model

    def load(self, model: nn.Module, *, averaged: bool = True) -> None:
        """Give `model` the weights of this checkpoint. Raises CheckpointError if they do not fit."""
        labels = {"model": as_made(self.cfg.model.name)}
        load_weights_alone(model, self.path, self.meta, labels, averaged=averaged and self.averaged)


def require_alike(first: Subject, other: Subject) -> None:
    """Raise CheckpointError unless both have the same model and classes."""
    for what, a, b in (
        ("model", first.cfg.model.name, other.cfg.model.name),
        ("number of classes", first.num_classes, other.num_classes),
        ("classes", first.classes, other.classes),
    ):
        if a != b:
            raise CheckpointError(
                f"{other.path}: its {what} is {_short(b)}, that of {first.path} is {_short(a)}: between "
                "them there is no line: give checkpoints of one model and the same classes"
            )


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}…"


def find_subjects(paths: Sequence[Path], overrides: list[str], comm: Comm) -> list[Subject]:
    """Verify checkpoints, or of runs the newest, and read their configs.

    Every rank must call. Raises CheckpointError or ConfigError on all of them.
    """
    found = []
    for path in paths:
        activity.enter(f"verifying {path}")
        with together(comm):
            checkpoint, root = find_checkpoint(path)
            meta = verify(checkpoint)
            cfg = config_of(root, meta, overrides)
        digest = meta["sha256"]["model.safetensors"]
        require_equal(comm, f"the checkpoint {path}", digest, CheckpointError)
        name = f"{root.resolve().name} {checkpoint.resolve().name}"
        found.append(Subject(checkpoint, name, meta, cfg))
    return found
