"""Weights files to test with, and the model they are of."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import nn

from hvdtrain.models import MODELS

Tensors = dict[str, torch.Tensor]
Write = Callable[[Path, Tensors], object]
HEAD = ("classifier.weight", "classifier.bias")


def trained() -> nn.Module:
    """The model that the files are of."""
    torch.manual_seed(7)
    return MODELS["resnet8_cifar"](num_classes=10)


def fresh(name: str = "resnet8_cifar", classes: int = 10) -> nn.Module:
    torch.manual_seed(1)
    return MODELS[name](num_classes=classes)


def equal(model: nn.Module, tensors: Tensors) -> bool:
    state = model.state_dict()
    return all(
        torch.equal(state[name], tensor)
        for name, tensor in tensors.items()
        if not name.endswith("num_batches_tracked")
    )


def under(prefix: str, tensors: Tensors) -> Tensors:
    return {f"{prefix}{name}": tensor for name, tensor in tensors.items()}


def put(wrap: Callable[[Tensors], Any], **options: Any) -> Write:
    return lambda path, tensors: torch.save(wrap(tensors), path, **options)


def arrays(tensors: Tensors) -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in tensors.items()}


def other(tensors: Tensors) -> Tensors:
    """Weights that are not to be taken."""
    return {name: tensor + 1 for name, tensor in tensors.items()}


def in_shards(path: Path, tensors: Tensors) -> None:
    names = sorted(tensors)
    where = {}
    for k, part in enumerate((names[::2], names[1::2])):
        file = f"model-0000{k + 1}-of-00002.safetensors"
        safetensors.torch.save_file({n: tensors[n] for n in part}, path.parent / file)
        where |= dict.fromkeys(part, file)
    path.write_text(json.dumps({"metadata": {}, "weight_map": where}))


def old_save(tensors: Tensors, path: Path) -> None:
    torch.save(tensors, path, _use_new_zipfile_serialization=False)
