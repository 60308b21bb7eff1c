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
from hvdtrain.engine.weights_source import WeightsSource, find_weights
from hvdtrain.errors import CheckpointError, ConfigError
from hvdtrain.models import build_model
from hvdtrain.models.counterparts import ours, require_counterpart
from hvdtrain.models.weights import load_weights
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
    source, rows, described = None, None, ""
    with together(comm):
        if comm.rank == 0:
            source = find_weights(asked.weights, "train.teacher.weights")
            if source.checkpoint is not None:
                read_meta(source.checkpoint)  # says what is wrong with it
            model = _model(cfg, source)
            rows = _rows(source.text, source.classes, classes)
            described = json.dumps(model.model_dump())
    model = Model.model_validate(json.loads(comm.gather_text(described)[0]))
    with together(comm):
        network = build_model(model, num_classes).to(device).requires_grad_(False).eval()
        teacher = Teacher(network, asked.share, asked.temperature)
        if source is not None:
            teacher.notes = load_weights(
                network,
                source.path,
                rows,
                setting="train.teacher.weights",
                whole=True,
                name=source.text,
            )
            teacher.notes[:0] = source.notes()
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


def _model(cfg: Config, source: WeightsSource) -> Model:
    """The section `model` of the teacher. Raises ConfigError if it is not known, or does not fit."""
    asked, known = cfg.train.teacher, source.published
    if known.architecture is not None:
        _require_images(cfg, known.mean, known.std)
        return _published_model(known.architecture, asked.model)
    theirs = _config_of(source.checkpoint, source.meta) if source.checkpoint else None
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
    _require_images(cfg, theirs.data.mean, theirs.data.std)
    return theirs.model.model_copy(update={"weights": None, "freeze": []})


def _published_model(architecture: str, asked: str | None) -> Model:
    """The section `model` of timm's `architecture`. Raises ConfigError if another network was asked for."""
    if asked is not None:
        try:
            require_counterpart(architecture, asked, "train.teacher.model")
        except CheckpointError as error:
            raise ConfigError(f"train.teacher.weights: {error}") from None
    name = asked or ours(architecture) or f"timm:{architecture}"
    return Model(name=name, padding="same" if name.startswith("nfnet_f") else "torch")


def _require_images(cfg: Config, mean: list[float] | None, std: list[float] | None) -> None:
    """Raise ConfigError if the teacher's images were prepared otherwise than those of the run."""
    for key, its in (("mean", mean), ("std", std)):
        own = getattr(cfg.data, key)
        if its is not None and own != its:
            raise ConfigError(
                f"train.teacher.weights: {cfg.train.teacher.weights} was trained with data.{key} {its}, this "
                f"run has {own}, and both see the same images: set data.{key} to that of the teacher"
            )


def _rows(text: str, theirs: list[str] | None, ours: Sequence[str] | None) -> list[int] | None:
    """For each class of the run its number in the file; None if one of the two is without names."""
    if theirs is None or ours is None:
        return None
    if not (rows := matched_rows(theirs, ours)):
        raise CheckpointError(
            f"train.teacher.weights: {text}: made for other classes than those of data.train: "
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
