"""Distillation: a trained network, frozen, from whose outputs the model learns, too; `train.teacher`.

Source: Hinton et al. 2015, https://arxiv.org/abs/1503.02531, section 2.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn
from torch.nn import functional

from hvdtrain.checkpoint_files import read_meta
from hvdtrain.comm.agreement import together
from hvdtrain.comm.ranks import Comm
from hvdtrain.config.load import load_config, parse_config
from hvdtrain.config.schema import Config, Model
from hvdtrain.errors import CheckpointError, ConfigError
from hvdtrain.models import build_model
from hvdtrain.models.weights import load_weights
from hvdtrain.models.weights_file import checkpoint_of
from hvdtrain.paths import run_config
from pipelines.sources.classes import difference, matched_rows


@dataclass
class Teacher:
    """A network in evaluation mode that gets no gradients, and how it counts; equal on all ranks."""

    network: nn.Module
    share: float
    temperature: float
    sha256: str = ""
    """Of its weights and buffers."""
    notes: list[str] = field(default_factory=list)
    """On rank 0, what there is to tell of the weights, one a line."""

    def with_share(
        self, own: torch.Tensor, logits: torch.Tensor, taught: torch.Tensor
    ) -> torch.Tensor:
        """share · T² · KL(teacher ‖ student) + (1 − share) · own, of each image [n].

        `own` [n]: the loss without a teacher; `logits` of the student and `taught`, those of the teacher,
        [n, classes], fp32. T² keeps the size of the gradient when T changes.
        """
        student = functional.log_softmax(logits / self.temperature, dim=1)
        teacher = functional.log_softmax(taught / self.temperature, dim=1)
        kl = functional.kl_div(student, teacher, reduction="none", log_target=True).sum(1)
        return self.share * self.temperature**2 * kl + (1 - self.share) * own


def load_teacher(
    cfg: Config, comm: Comm, device: torch.device, num_classes: int, classes: Sequence[str] | None
) -> Teacher | None:
    """The teacher of `cfg`, read by rank 0; None without one. Every rank must call.

    `classes`: the names of the run's classes, in their order, if they are known. Raises ConfigError or
    CheckpointError on all ranks if the teacher is not one of these classes, or cannot be read.
    """
    asked = cfg.train.teacher
    if asked.weights is None:
        return None
    path, rows, described = Path(asked.weights), None, ""
    with together(comm):
        if comm.rank == 0:
            checkpoint = checkpoint_of(path)
            meta = {} if checkpoint is None else read_meta(checkpoint)
            model = _model(cfg, _config_of(checkpoint, meta) if checkpoint else None)
            rows = _rows(path, meta.get("data", {}).get("classes") or None, classes)
            described = json.dumps(model.model_dump())
    model = Model.model_validate(json.loads(comm.gather_text(described)[0]))
    with together(comm):
        network = build_model(model, num_classes).to(device).requires_grad_(False).eval()
        teacher = Teacher(network, asked.share, asked.temperature)
        if comm.rank == 0:
            teacher.notes = load_weights(
                network, path, rows, setting="train.teacher.weights", whole=True
            )
    if cfg.train.channels_last:
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    comm.broadcast_({f"teacher.{name}": t for name, t in network.state_dict().items()})
    teacher.sha256 = _sha256(network)
    teacher.notes.insert(
        0, f"train.teacher: {model.name}, sha256 {teacher.sha256[:12]} of its weights"
    )
    return teacher


def _config_of(checkpoint: Path, meta: dict[str, Any]) -> Config | None:
    """The config of the teacher's run; None if it is not recorded."""
    if "config" in meta:
        return parse_config(yaml.safe_dump(meta["config"]), f"the config in {checkpoint}")
    file = run_config(checkpoint)
    return load_config(file) if file.is_file() else None


def _model(cfg: Config, theirs: Config | None) -> Model:
    """The section `model` of the teacher. Raises ConfigError if it is not known, or does not fit."""
    asked = cfg.train.teacher
    if theirs is None:
        if asked.model is None:
            raise ConfigError(
                f"train.teacher.model: not set, and {asked.weights} does not say it: name the network of "
                "these weights"
            )
        return Model(name=asked.model)
    if asked.model not in (None, theirs.model.name):
        raise ConfigError(
            f"train.teacher.model: {asked.model}, but {asked.weights} is of {theirs.model.name}: leave "
            "train.teacher.model out"
        )
    for key in ("mean", "std"):
        own, its = getattr(cfg.data, key), getattr(theirs.data, key)
        if own != its:
            raise ConfigError(
                f"train.teacher.weights: {asked.weights} was trained with data.{key} {its}, this run has "
                f"{own}, and both see the same images: set data.{key} to that of the teacher"
            )
    return theirs.model.model_copy(update={"weights": None, "freeze": []})


def _rows(path: Path, theirs: list[str] | None, ours: Sequence[str] | None) -> list[int] | None:
    """For each class of the run its number in the file; None if one of the two is without names."""
    if theirs is None or ours is None:
        return None
    if not (rows := matched_rows(theirs, ours)):
        raise CheckpointError(
            f"train.teacher.weights: {path}: made for other classes than those of data.train: "
            f"{difference(ours, theirs).text()}: choose a teacher of the same classes"
        )
    return rows


def _sha256(network: nn.Module) -> str:
    """Of names, shapes, types and values of all weights and buffers."""
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        values = tensor.detach().cpu().contiguous().flatten()
        digest.update(values.view(torch.uint8).numpy())
    return digest.hexdigest()
