"""What a repository of the hub says of its weights: network, names of classes, preprocessing."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

from hvdtrain.errors import CheckpointError

CONFIG, PREPROCESSOR = "config.json", "preprocessor_config.json"
MAX_BYTES = 2**24
"""Of either; the names of 21,000 classes take one MB."""
RESNETS = {
    ("basic", (2, 2, 2, 2)): "resnet18",
    ("basic", (3, 4, 6, 3)): "resnet34",
    ("bottleneck", (2, 2, 2, 2)): "resnet26",
    ("bottleneck", (3, 4, 6, 3)): "resnet50",
    ("bottleneck", (3, 4, 23, 3)): "resnet101",
    ("bottleneck", (3, 8, 36, 3)): "resnet152",
}
"""Blocks and depths of a ResNet of transformers → timm's name of it."""
MAX_NUMBER = 1e6
RESAMPLE = {2: "bilinear", 3: "bicubic"}
"""PIL's numbers of filters."""


class Published(NamedTuple):
    """What is known of weights; None: it is not said."""

    architecture: str | None = None
    """timm's name of the network."""
    classes: list[str] | None = None
    """Names, in the order of the outputs."""
    mean: list[float] | None = None
    """Of RGB in 0–1, subtracted from images."""
    std: list[float] | None = None
    crop_ratio: float | None = None
    """In evaluation, as `data.val_crop_ratio`."""
    interpolation: str | None = None


def published(config: Path | None, preprocessor: Path | None = None) -> Published:
    """What the two files say, each None if there is none.

    Raises CheckpointError if one is no JSON, or the network is of a kind that is not known.
    """
    said = _read(config)
    if "model_type" in said and "architecture" not in said:
        return _of_transformers(said, _read(preprocessor))
    # In older ones the preprocessing is not in a section of its own.
    inner = said["pretrained_cfg"] if isinstance(said.get("pretrained_cfg"), dict) else said
    found = {**inner, **{k: said[k] for k in ("label_names", "num_classes") if k in said}}
    network = said.get("architecture")
    whole = isinstance(network, str) and re.fullmatch(r"[\w.-]{1,80}", network, re.ASCII)
    crop = found.get("test_crop_pct") or found.get("crop_pct")
    filter_name = found.get("interpolation")
    return Published(
        network if whole else None,
        _names(found.get("label_names", found.get("labels")), found.get("num_classes")),
        _three(found.get("mean")),
        _three(found.get("std")),
        _number(crop),
        filter_name if filter_name in RESAMPLE.values() else None,
    )


def _of_transformers(said: dict[str, Any], preprocessing: dict[str, Any]) -> Published:
    kind = str(said["model_type"])[:40]
    if kind != "resnet":
        raise CheckpointError(
            f"a network of transformers of the kind {ascii(kind)[1:-1]}; of its networks only ResNets are "
            "taken: choose weights of timm or torchvision"
        )
    depths = said.get("depths")
    block = said.get("layer_type", "bottleneck")
    whole = isinstance(depths, list) and all(isinstance(depth, int) for depth in depths)
    name = RESNETS.get((str(block), tuple(depths or ()))) if whole else None
    usual = (
        said.get("embedding_size", 64) == 64
        and said.get("hidden_act", "relu") == "relu"
        and not said.get("downsample_in_first_stage")
        and not said.get("downsample_in_bottleneck")
    )
    if name is None or not usual:
        raise CheckpointError(
            f"a ResNet of transformers that no network here equals (layer_type {str(block)[:20]!r}, depths "
            f"{str(depths)[:40]}, stride, width or activation): choose weights of timm or torchvision"
        )
    labels, resample = said.get("id2label"), preprocessing.get("resample")
    names = None
    if isinstance(labels, dict):
        names = _names([labels.get(str(i)) for i in range(len(labels))], len(labels))
    return Published(
        name,
        names,
        _three(preprocessing.get("image_mean")),
        _three(preprocessing.get("image_std")),
        _number(preprocessing.get("crop_pct")),
        RESAMPLE.get(resample) if isinstance(resample, int) else None,
    )


def _names(labels: Any, count: Any) -> list[str] | None:
    """Names of all classes; None if they are not given, or only numbered, as LABEL_0 is."""
    if not isinstance(labels, list) or not labels:
        return None
    if not all(isinstance(name, str) for name in labels) or count not in (None, len(labels)):
        return None
    numbered = all(name == f"LABEL_{i}" for i, name in enumerate(labels))
    return None if numbered else list(labels)


def _three(values: Any) -> list[float] | None:
    if not isinstance(values, (list, tuple)) or len(values) != 3:
        return None
    numbers = [_number(value) for value in values]
    return [n for n in numbers if n is not None] if None not in numbers else None


def _number(value: Any) -> float | None:
    usual = isinstance(value, (int, float)) and not isinstance(value, bool)
    return float(value) if usual and abs(value) < MAX_NUMBER else None


def _read(file: Path | None) -> dict[str, Any]:
    if file is None:
        return {}
    try:
        with file.open("rb") as opened:
            text = opened.read(MAX_BYTES + 1)
        said = json.loads(text) if len(text) <= MAX_BYTES else None
    except (OSError, ValueError, RecursionError):
        said = None
    if not isinstance(said, dict):
        raise CheckpointError(f"{file.name} of the repository is no JSON, cut off or too long")
    return said
