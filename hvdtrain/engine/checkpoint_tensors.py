"""The tensors of a checkpoint, compared with what a model needs before they are used."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import nn

from hvdtrain.checkpoint_files import EMA_FILE, MODEL_FILE
from hvdtrain.errors import CheckpointError
from hvdtrain.optim.lookahead import SLOW


def load_weights_alone(
    model: nn.Module, path: Path, meta: dict[str, Any], labels: dict[str, Any], *, averaged: bool
) -> None:
    """Load the weights and buffers of a checkpoint into `model`; `meta` is what `verify` returned.

    `averaged`: the averages over time that the run keeps. Raises CheckpointError if it has none, or
    belongs to another model; `model` is then untouched.
    """
    check_labels(path, meta, labels)
    name = EMA_FILE if averaged else MODEL_FILE
    if name not in meta["sha256"]:
        raise no_averages(path, name)
    loaded, target = read_tensors(path / name), model.state_dict()
    check_fit(path / name, loaded, target)
    with torch.no_grad():
        for key, tensor in target.items():
            tensor.copy_(loaded[key])


def check_labels(path: Path, meta: dict[str, Any], labels: dict[str, Any]) -> None:
    """Raise CheckpointError if one of `labels`, such as model and classes, differs."""
    for key, expected in labels.items():
        found = meta["labels"].get(key, expected)  # older checkpoints lack newer labels
        if found != expected:
            raise CheckpointError(
                f"{path}: made by another run: its {key} is {found}, this run's is {expected}"
            )


def no_averages(path: Path, name: str) -> CheckpointError:
    """The error where the file `name` is missing."""
    return CheckpointError(
        f"{path}: has no {name}: it was made without train.ema_decay; leave that out"
    )


def read_tensors(file: Path) -> dict[str, torch.Tensor]:
    """All tensors of a file, by name. Raises CheckpointError if it is of another kind."""
    try:
        return safetensors.torch.load_file(file)
    except (safetensors.SafetensorError, KeyError, ValueError) as error:
        raise CheckpointError(f"{file}: not written by hvdtrain: {error}") from None


def check_fit(file: Path, loaded: dict[str, torch.Tensor], target: dict[str, torch.Tensor]) -> None:
    """Raise CheckpointError unless `loaded` has the names and shapes of `target`."""
    missing, extra = sorted(target.keys() - loaded.keys()), sorted(loaded.keys() - target.keys())
    if any(name.endswith(f"/{SLOW}") for name in missing + extra):
        raise CheckpointError(
            f"{file}: {'has no' if missing else 'has'} slow weights: set optimizer.lookahead as in the "
            "run that made it"
        )
    if missing or extra:
        what = f"lacks {missing[0]}" if missing else f"has {extra[0]}, which this model lacks"
        raise CheckpointError(f"{file}: made by another model: it {what}")
    for key, tensor in target.items():
        if loaded[key].shape != tensor.shape:
            raise CheckpointError(
                f"{file}: made by another model: {key} is {list(loaded[key].shape)}, "
                f"this model's is {list(tensor.shape)}"
            )
