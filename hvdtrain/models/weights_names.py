"""Finds the weights in what a file holds: in nested dictionaries, below the prefixes of wrappers."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from hvdtrain.errors import CheckpointError
from hvdtrain.models.weights_pickle import NumpyArray

Tensors = dict[str, Tensor]

AVERAGED = (
    *("state_dict_ema", "model_ema", "model_ema_state_dict", "ema_state_dict", "ema_model", "ema"),
    *("params_ema", "averaged_model"),
)
"""Keys of averaged weights. They come first, as they are what such a run was evaluated with."""
WRAPPERS = (
    *("state_dict", "model_state_dict", "model_state", "model", "module", "net", "network"),
    *("model_weights", "weights", "params", "state", "app", "teacher", "backbone"),
    *("classy_state_dict", "base_model", "trunk"),
)
"""Keys of the dictionaries that trainers put around a model's weights."""
MAX_NESTED = 6
WRAPPED = re.compile(
    r"(?:^|(?<=\.))(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|_forward_module)\."
)
"""What torch.compile, FSDP, checkpointed activations and Lightning put into names, at any place."""
MAX_PREFIXES = 16


def find_tensors(content: Any) -> tuple[Tensors, list[str]]:
    """The tensors by name in what a file holds, and notes about the choice.

    Raises CheckpointError if there are none.
    """
    found = _find(content, ())
    if found is None:
        raise CheckpointError(_nothing(content))
    values, keys = found
    tensors: Tensors = {}
    others = []
    for name, value in values.items():
        value = value.tensor() if isinstance(value, NumpyArray) else value  # noqa: PLW2901
        if isinstance(name, str) and isinstance(value, Tensor):
            tensors[name] = value
        else:
            others.append(str(name))
    notes = []
    if any(key in AVERAGED for key in keys):
        notes.append(f"these are its averaged weights, {'.'.join(keys)}")
    if others:
        notes.append(f"left out as no tensors: {listed(others)}")
    return tensors, notes


def _find(content: Any, keys: tuple[str, ...]) -> tuple[Mapping[Any, Any], tuple[str, ...]] | None:
    if not isinstance(content, dict) or len(keys) > MAX_NESTED:
        return None
    for key in (*AVERAGED, *WRAPPERS):
        if isinstance(content.get(key), dict) and (found := _find(content[key], (*keys, key))):
            return found
    has_any = any(_is_tensor(v) for k, v in content.items() if isinstance(k, str))
    return (content, keys) if has_any else None


def _is_tensor(value: Any) -> bool:
    return isinstance(value, Tensor) or (
        isinstance(value, NumpyArray) and value.tensor() is not None
    )


def _nothing(content: Any) -> str:
    expected = "expected a dictionary of tensors by name"
    if not isinstance(content, dict):
        return f"{expected}, found {_kind(content)}"
    if not content:
        return f"{expected}, found an empty one"
    if any(isinstance(value, Tensor) for value in content.values()):
        return (
            f"{expected}, found tensors under the keys {listed(map(repr, content))}: the state of "
            "an optimizer, or a list of weights without names?"
        )
    return f"{expected}, found one with {listed(map(str, content))}, none of them weights by name"


def _kind(value: Any) -> str:
    known = {list: "a list", tuple: "a tuple", str: "text", Tensor: "a single tensor"}
    return known.get(type(value), f"a value of another kind ({type(value).__name__})")


def listed(names: Any) -> str:
    """The first names, and how many more."""
    every = list(names)
    first = ", ".join(_short(name) for name in every[:4])
    return f"{first} and {len(every) - 4} more" if len(every) > 4 else first


def _short(name: str) -> str:
    return name if len(name) <= 60 else f"{name[:57]}…"


def fitting(
    tensors: Tensors, target: Tensors, rename: Callable[[Tensors], Tensors]
) -> tuple[Tensors, list[str]]:
    """The tensors by the names of `target`, without wrappers' prefixes, and notes.

    `rename` translates names of other libraries; it is tried below every prefix. The prefix is the
    one below which the most names fit. Raises CheckpointError if nothing fits, or two prefixes do
    alike.
    """
    plain = _unwrapped(tensors)
    prefixes = _prefixes(plain, target)
    tried = []
    for prefix in prefixes or [""]:
        below = {k.removeprefix(prefix): v for k, v in plain.items() if k.startswith(prefix)}
        renamed = rename(below)
        named = renamed.keys() & target.keys()
        shaped = sum(renamed[name].shape == target[name].shape for name in named)
        tried.append((len(named), shaped, prefix, renamed, below))
    tried.sort(key=lambda one: one[:2], reverse=True)
    fit, _, prefix, renamed, below = tried[0]
    if not fit:
        raise CheckpointError(
            f"nothing in it fits this model: it has {listed(sorted(plain))}; this model "
            f"{listed(sorted(target))}"
        )
    if len(tried) > 1 and tried[1][:2] == tried[0][:2]:
        raise CheckpointError(
            f"holds two such models, under {tried[0][2]!r} and {tried[1][2]!r}: save the one to "
            "start from in a file of its own"
        )
    outside = sorted(k for k in plain if not k.startswith(prefix))
    notes = [f"left out as outside {prefix!r}: {listed(outside)}"] if outside else []
    return renamed, notes


def _unwrapped(tensors: Tensors) -> Tensors:
    plain: Tensors = {}
    for name, tensor in tensors.items():
        new = WRAPPED.sub("", name)
        if new in plain:
            raise CheckpointError(f"has {_short(new)} twice, once below a wrapper's name")
        plain[new] = tensor
    return plain


def _prefixes(tensors: Tensors, target: Tensors) -> list[str]:
    """The most frequent beginnings of names whose ends are names of this model or a ResNet's."""
    anchors = {*target, "layer1.0.conv1.weight"}
    found: Counter[str] = Counter()
    for name in tensors:
        parts = name.split(".", 12)
        for cut in range(len(parts)):
            if ".".join(parts[cut:]) in anchors:
                found["".join(f"{part}." for part in parts[:cut])] += 1
    first = [prefix for prefix in found if f"{prefix}layer1.0.conv1.weight" in tensors]
    frequent = [prefix for prefix, _ in found.most_common(MAX_PREFIXES)]
    return list(dict.fromkeys([*first[:MAX_PREFIXES], *frequent]))
