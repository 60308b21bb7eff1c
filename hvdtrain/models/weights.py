"""Loads weights from a file to start a run, also with other classes, names or from a ResNet."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from hvdtrain.errors import CheckpointError
from hvdtrain.models.convert import resnet_to_nf
from hvdtrain.models.nfnet import NFNet
from hvdtrain.models.options import classifier_of
from hvdtrain.models.resnet import ResNet
from hvdtrain.models.weights_file import read_file
from hvdtrain.models.weights_names import Tensors, find_tensors, fitting
from hvdtrain.models.weights_nfnet import is_published, rename_nfnet

RENAMED = (
    (r"^conv1\.weight$", "stem.0.weight"),
    (r"^bn1\.", "stem.1."),
    (r"^conv1\.(\d)\.", r"stem.\1."),
    (r"\.bn(\d)\.", r".norm\1."),
    (r"\.downsample\.", ".shortcut."),
    (r"^fc\.", "classifier."),
)
"""Names in ResNets of torchvision and timm → our names; `layer1` … `layer4` count from 0."""
RENAMED_TRANSFORMERS = (
    (r"^resnet\.", ""),
    (r"^embedder\.embedder\.convolution\.", "stem.0."),
    (r"^embedder\.embedder\.normalization\.", "stem.1."),
    (r"^encoder\.stages\.(\d+)\.layers\.", r"stages.\1."),
    (r"\.shortcut\.convolution\.", ".shortcut.0."),
    (r"\.shortcut\.normalization\.", ".shortcut.1."),
    (r"\.convolution\.", ".conv."),
    (r"\.normalization\.", ".norm."),
    (r"^classifier\.1\.", "classifier."),
)
"""The same of those of transformers, whose layers in a block count from 0."""
FIRST_OF_TRANSFORMERS = "resnet.embedder.embedder.convolution.weight"


def load_weights(
    model: nn.Module,
    path: str | Path,
    rows: Sequence[int] | None = None,
    *,
    setting: str = "model.weights",
    whole: bool = False,
    name: str | None = None,
) -> list[str]:
    """Copy the weights in `path` into `model`; returns notes for the log, one a line.

    A classifier of another size keeps its starting weights. `rows`: for each class, the number it
    has in the file; empty: the file's classes are others; None: it does not name them. Everything
    else must fit, with `whole` the classifier, too: raises CheckpointError naming what does not, and
    then leaves `model` unchanged. `setting`: begins the error. `name`: what the user knows the weights by, if
    it is not `path`.
    """
    name = name or str(path)
    try:
        return [f"{name}: {note}" for note in _load(model, Path(path), rows, whole)]
    except CheckpointError as error:
        raise CheckpointError(f"{setting}: {name}: {error}") from None


def _load(model: nn.Module, path: Path, rows: Sequence[int] | None, whole: bool) -> list[str]:
    tensors, notes = _read(path)
    target = {k: v for k, v in model.state_dict().items() if not _is_counter(k)}
    tensors = {k: v for k, v in tensors.items() if not _is_counter(k)}
    if is_published(tensors) and not any(getattr(m, "same", False) for m in model.modules()):
        notes.append(
            "warning: published NFNet weights, which were trained with model.padding=same: at even "
            "image sizes the network computes something else without it"
        )
    tensors, left_out = fitting(tensors, target, partial(_renamed, model))
    notes += left_out
    if isinstance(model, NFNet) and "stem.1.running_var" in tensors:
        tensors = _converted(model, tensors)
        notes.append(
            "batch norms folded into an NF-ResNet; kernel means and inner ReLUs differ: "
            "fine-tune it"
        )
    fitted = len(target)
    if note := _without_other_head(model, tensors, target, rows):
        notes.append(note)
    _check(tensors, target, path)
    if whole and note and len(target) < fitted:
        raise CheckpointError(f"made for other classes: {note.partition(': ')[2]}")
    with torch.no_grad():
        ready = {name: _converted_to(name, tensors[name], target[name]) for name in target}
        for name, tensor in target.items():
            tensor.copy_(ready[name])
    return [f"{len(target)} tensors loaded", *notes]


def read_tensors(path: Path) -> Tensors:
    """The tensors of a weights file, checkpoint or run by name; nothing in it is run.

    They may be in dictionaries such as `state_dict`. Raises CheckpointError if there are none.
    """
    try:
        return _read(path)[0]
    except CheckpointError as error:
        raise CheckpointError(f"model.weights: {path}: {error}") from None


def _read(path: Path) -> tuple[Tensors, list[str]]:
    content, notes = read_file(path)
    tensors, more = find_tensors(content)
    return tensors, [*notes, *more]


def _renamed(model: nn.Module, tensors: Tensors) -> Tensors:
    """`tensors` by our names, if they have those of another library for such a model."""
    if isinstance(model, NFNet) and is_published(tensors):
        return rename_nfnet(tensors, model.depths)
    return rename_resnet(tensors) if isinstance(model, (ResNet, NFNet)) else dict(tensors)


def rename_resnet(tensors: Tensors) -> Tensors:
    """`tensors` by our names, if they have the names of a ResNet of torchvision, timm or transformers."""
    if FIRST_OF_TRANSFORMERS in tensors:
        return {_from_transformers(name): tensor for name, tensor in tensors.items()}
    if "layer1.0.conv1.weight" not in tensors:
        return tensors
    deep = "conv1.0.weight" in tensors
    renamed = {}
    for name, tensor in tensors.items():
        if deep:
            name = re.sub(r"^bn1\.", "stem.7.", name)  # noqa: PLW2901
        for pattern, ours in RENAMED:
            name = re.sub(pattern, ours, name)  # noqa: PLW2901
        new = re.sub(r"^layer(\d)", lambda layer: f"stages.{int(layer[1]) - 1}", name)
        renamed[new] = tensor
    return renamed


def _from_transformers(name: str) -> str:
    for pattern, ours in RENAMED_TRANSFORMERS:
        name = re.sub(pattern, ours, name)
    return re.sub(r"\.layer\.(\d)\.(conv|norm)\.", _numbered, name)


def _numbered(found: re.Match[str]) -> str:
    return f".{found[2]}{int(found[1]) + 1}."


def _converted(model: NFNet, tensors: Tensors) -> Tensors:
    last = f"stages.{len(model.depths) - 1}.{model.depths[-1]}.conv1.weight"
    try:
        if last in tensors or model.activation != "relu":
            raise KeyError(last)
        return resnet_to_nf(tensors, model.depths)
    except KeyError as error:
        raise CheckpointError(
            f"a ResNet that is not of this NF-ResNet's depths, {model.depths} ({error.args[0]})"
        ) from None


def _without_other_head(
    model: nn.Module, tensors: Tensors, target: Tensors, rows: Sequence[int] | None
) -> str | None:
    """Remove a classifier that does not fit from both, or put its classes in this model's order;
    returns a note about it, or None."""
    head = classifier_of(model)
    name = next((name for name, module in model.named_modules() if module is head), None)
    if head is None or name is None:
        return None
    weight = tensors.get(f"{name}.weight")
    same_size = weight is not None and weight.shape == head.weight.shape
    if same_size and (rows is None or list(rows) == list(range(len(rows))) != []):
        return None
    keys = [f"{name}.{key}" for key in ("weight", "bias")]
    if same_size and rows:
        of_sigmoid = head.out_features == 1 < len(rows)  # the other class's logit is −z
        tensors.update(
            {
                key: -tensors[key] if of_sigmoid else tensors[key][list(rows)]
                for key in keys
                if key in tensors
            }
        )
        return f"{name}: the file has the same classes in another order; they are matched by name"
    for key in keys:
        tensors.pop(key, None)
        target.pop(key, None)
    if same_size:
        return f"{name} keeps its starting weights: the file's classes have other names"
    in_file = "none" if weight is None else " → ".join(map(str, reversed(weight.shape)))
    return (
        f"{name} keeps its starting weights: the file has {in_file}, this model "
        f"{head.in_features} → {head.out_features}"
    )


def _check(tensors: Tensors, target: Tensors, path: Path) -> None:
    missing = sorted(target.keys() - tensors.keys())
    wrong = [f"{name} is missing" for name in missing]
    wrong += [f"{name} is not in this model" for name in tensors.keys() - target.keys()]
    wrong += [
        f"{name} is {list(tensors[name].shape)}, this model's is {list(tensor.shape)}"
        for name, tensor in target.items()
        if name in tensors and tensors[name].shape != tensor.shape
    ]
    if wrong:
        more = f"; and {len(wrong) - 4} more" if len(wrong) > 4 else ""
        if missing and re.search(r"-\d+-of-\d+\.", path.name):
            more += "; it is one part of several: name their .index.json"
        raise CheckpointError(f"made by another model: {'; '.join(sorted(wrong)[:4])}{more}")


def _converted_to(name: str, tensor: Tensor, target: Tensor) -> Tensor:
    """`tensor` in the type of `target`. Raises CheckpointError unless it is finite there."""
    usable = tensor.layout == torch.strided and not tensor.is_quantized and not tensor.is_meta
    if (
        not usable
        or tensor.is_complex()
        or tensor.is_floating_point() != target.is_floating_point()
    ):
        kind = tensor.dtype if tensor.layout == torch.strided else tensor.layout
        raise CheckpointError(
            f"{name} is {str(kind).removeprefix('torch.')}, this model's is "
            f"{str(target.dtype).removeprefix('torch.')}: quantized, sparse or other weights that "
            "are no plain numbers are not converted"
        )
    converted = tensor.to(device=target.device, dtype=target.dtype)
    if not torch.isfinite(converted).all():
        count = int((~torch.isfinite(converted)).sum())
        raise CheckpointError(
            f"{name} has {count:,} of {converted.numel():,} values that are not finite (NaN, "
            "infinite or too large): a run that diverged? Use older weights of it"
        )
    return converted


def _is_counter(name: str) -> bool:
    """Whether it is a batch norm's count of batches, which is not used with a fixed momentum."""
    return name.endswith("num_batches_tracked")
