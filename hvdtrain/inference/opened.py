"""Opens what a user names as a model: a run, a checkpoint, or a file that `hvdtrain export` wrote."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import safetensors
import torch
from torch import nn

from hvdtrain.engine.checkpoint import verify
from hvdtrain.errors import CheckpointError, ConfigError
from hvdtrain.inference.description import Description
from hvdtrain.models import build_model
from hvdtrain.models.weights import load_weights
from hvdtrain.run.evaluation import config_of, find_checkpoint
from hvdtrain.run.subject import Subject


@dataclass(frozen=True)
class OpenedModel:
    """A network with its weights, for evaluation, and what it takes and gives."""

    network: nn.Module
    about: Description
    source: Path
    """The checkpoint or file."""
    warnings: list[str]
    images: str | None = None
    """Where the run's validation images are, or its training images if it holds out a share of them."""


def open_model(path: Path, device: torch.device) -> OpenedModel:
    """The network at `path` on `device`, with the averaged weights if the run keeps them.

    `path`: a run, whose newest checkpoint is taken, a checkpoint, or a safetensors file of
    `hvdtrain export`. Raises CheckpointError or ConfigError.
    """
    opened = _of_checkpoint(path, device) if path.is_dir() else _of_file(path, device)
    opened.network.eval().requires_grad_(False)
    if not opened.about.classes:
        opened.warnings.append(
            f"{opened.source}: does not name its classes: they are shown by number"
        )
    return opened


def _of_checkpoint(path: Path, device: torch.device) -> OpenedModel:
    checkpoint, root = find_checkpoint(path)
    meta = verify(checkpoint)
    cfg = config_of(root, meta, [])
    subject = Subject(checkpoint, checkpoint.name, meta, cfg)
    warnings = []
    if subject.epoch.rect_val:
        warnings.append(
            "phases.rect_val: the run evaluates on rectangles of similar shape; here images are squares"
        )
    images = cfg.data.val_path or cfg.data.train
    about = Description.of(subject)
    return OpenedModel(subject.network(device), about, checkpoint, warnings, images)


def _of_file(path: Path, device: torch.device) -> OpenedModel:
    if not path.is_file():
        raise CheckpointError(
            f"{path}: no such run, checkpoint or file"
            if not path.exists()
            else f"{path}: not a regular file"
        )
    try:
        with safetensors.safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            held = sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        reason = str(error).strip().split("\n")[0][:80]
        raise CheckpointError(
            f"{path}: expected a run, a checkpoint or a safetensors file of hvdtrain export, "
            f"found another file ({reason})"
        ) from None
    about = Description.read(metadata, str(path))
    _require_fitting(about, held, path)
    network = build_model(about.model, about.num_classes)
    load_weights(network, path, setting="model", whole=True)
    network = network.to(device)
    if about.channels_last:
        network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return OpenedModel(network, about, path, [])


def _require_fitting(about: Description, held: int, path: Path) -> None:
    """Refuse a network far larger than the `held` numbers of its file, before it takes any memory."""
    needed = about.num_classes  # the last layer has a number for each
    try:
        with torch.device("meta"):
            planned = build_model(about.model, about.num_classes)
        needed = sum(tensor.numel() for tensor in planned.state_dict().values())
    except RuntimeError:  # some of torchvision's compute with tensors while they are built
        pass
    if needed > 2 * held + 2**20:
        raise CheckpointError(
            f"{path}: damaged: its metadata describe a network of {needed:,} weights, it has {held:,}; export it "
            "again"
        )


def find_device(name: str) -> torch.device:
    """`auto`: the first GPU, or the CPU where there is none; else a device by torch's name for it.

    Raises ConfigError for one that is not there.
    """
    if name == "auto":
        return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).strip().split("\n")[0][:120]
        raise ConfigError(
            f"device: {name}: cannot be used ({reason}): use auto, cpu or cuda:N"
        ) from None
    if device.type == "meta":
        raise ConfigError("device: meta: computes nothing: use auto, cpu or cuda:N")
    return torch.device("cuda", torch.cuda.current_device()) if name == "cuda" else device
