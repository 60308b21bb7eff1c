"""Networks of timm and torchvision, by their names in those libraries."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
from collections.abc import Callable
from functools import partial
from types import ModuleType

from torch import nn

from hvdtrain.errors import ConfigError

PREFIXES = ("timm:", "torchvision:")


def build(name: str, num_classes: int, zero_gamma: bool) -> nn.Module:
    """`timm:NAME` or `torchvision:NAME`, with the starting weights that the library draws.

    `zero_gamma`: the last scale of residual blocks starts at 0, if the network has that option.
    Nothing is downloaded. Raises ConfigError if the library is not installed or does not know NAME.
    """
    library, _, known_as = name.partition(":")
    return (_timm if library == "timm" else _torchvision)(name, known_as, num_classes, zero_gamma)


def describe() -> list[str]:
    """One line for each library: installed or not."""
    lines = []
    for prefix in PREFIXES:
        installed = importlib.util.find_spec(prefix[:-1]) is not None
        state = "any classifier of it" if installed else "(not installed)"
        lines.append(f"{prefix + 'NAME':<16}  {state}")
    return lines


def _timm(name: str, known_as: str, num_classes: int, zero_gamma: bool) -> nn.Module:
    timm = _import("timm", name)
    # Only names of the registry: create_model would also accept addresses of hubs and folders.
    _require_known(name, known_as, timm.list_models())
    return _with_option(
        partial(timm.create_model, known_as, pretrained=False, num_classes=num_classes),
        zero_init_last=zero_gamma,
    )


def _torchvision(name: str, known_as: str, num_classes: int, zero_gamma: bool) -> nn.Module:
    models = _import("torchvision.models", name)
    # These two have more than one output in training.
    known = [m for m in models.list_models(module=models) if m not in ("googlenet", "inception_v3")]
    _require_known(name, known_as, known)
    return _with_option(
        partial(models.get_model, known_as, weights=None, num_classes=num_classes),
        zero_init_residual=zero_gamma,
    )


def _with_option(make: Callable[..., nn.Module], **option: bool) -> nn.Module:
    """`make` with an option, or without it if the network does not take it."""
    try:
        return make(**option)
    except TypeError as error:
        if next(iter(option)) not in str(error):
            raise
        return make()


def _import(module: str, name: str) -> ModuleType:
    library = module.partition(".")[0]
    try:
        return importlib.import_module(module)
    except (ImportError, RuntimeError, OSError) as error:  # the last two: binaries of another build
        raise ConfigError(
            f"model.name: {name}: {library} cannot be imported ({error}): install it with "
            f"`pip install {library}`, or choose a model that `hvdtrain models` lists"
        ) from None


def _require_known(name: str, known_as: str, known: list[str]) -> None:
    if known_as not in known:
        nearest = difflib.get_close_matches(known_as, known, n=3)
        hint = f"; did you mean {', '.join(nearest)}?" if nearest else ""
        raise ConfigError(
            f"model.name: {name}: not among the {len(known)} classifiers of that library{hint}"
        )
