"""Networks of timm and torchvision, by the names of their own registries."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
from types import ModuleType

from torch import nn

from hvdtrain.errors import ConfigError

PREFIXES = ("timm:", "torchvision:")


def build(name: str, num_classes: int) -> nn.Module:
    """`timm:NAME` or `torchvision:NAME` with starting weights of that library's own making.

    Nothing is downloaded. Raises ConfigError if the library is not installed or does not know NAME.
    """
    library, _, known_as = name.partition(":")
    return (_timm if library == "timm" else _torchvision)(name, known_as, num_classes)


def describe() -> list[str]:
    """A line for each library: installed or not."""
    lines = []
    for prefix in PREFIXES:
        installed = importlib.util.find_spec(prefix[:-1]) is not None
        state = "any classifier of it" if installed else "(not installed)"
        lines.append(f"{prefix + 'NAME':<16}  {state}")
    return lines


def _timm(name: str, known_as: str, num_classes: int) -> nn.Module:
    timm = _import("timm", name)
    # Only names of the registry: create_model would also follow hub and directory addresses.
    _require_known(name, known_as, timm.list_models())
    model: nn.Module = timm.create_model(known_as, pretrained=False, num_classes=num_classes)
    return model


def _torchvision(name: str, known_as: str, num_classes: int) -> nn.Module:
    models = _import("torchvision.models", name)
    # The others give more than one output in training.
    known = [m for m in models.list_models(module=models) if m not in ("googlenet", "inception_v3")]
    _require_known(name, known_as, known)
    model: nn.Module = models.get_model(known_as, weights=None, num_classes=num_classes)
    return model


def _import(module: str, name: str) -> ModuleType:
    library = module.partition(".")[0]
    try:
        return importlib.import_module(module)
    except (ImportError, RuntimeError, OSError) as error:  # the last two: another build's binaries
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
