"""Freezes and unfreezes parameters, by the names of their modules."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from hvdtrain.config.schema import Config
from hvdtrain.errors import ConfigError


def freeze(model: nn.Module, prefixes: Sequence[str], key: str = "model.freeze") -> None:
    """Freeze all parameters of the modules `prefixes` ("stem", "stages.0", …).

    Batch norms among them stay in evaluation mode: their running statistics are used and do not
    change. Raises ConfigError for a prefix that names no module, or if nothing is left to train; it
    begins with `key`.
    """
    for module in _modules(model, prefixes, key):
        for parameter in module.parameters(recurse=False):
            parameter.requires_grad_(False)
        if isinstance(module, _BatchNorm):
            module.eval()
            module.train = partial(_stay, module)  # type: ignore[method-assign, assignment]
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ConfigError(f"{key}: {', '.join(prefixes)}: nothing is left to train")


def freeze_for(model: nn.Module, cfg: Config, phase: int) -> None:
    """Freeze what is not trained in the phase number `phase`, and nothing else. Raises ConfigError."""
    for number, any_phase in enumerate(cfg.phases):
        unfreeze(model, any_phase.freeze, f"phases.{number}.freeze")
    freeze(model, cfg.model.freeze)
    for number, before in enumerate(cfg.phases[: phase + 1]):
        freeze(model, before.freeze, f"phases.{number}.freeze")
        unfreeze(model, before.unfreeze, f"phases.{number}.unfreeze")


def train_in_any_phase(model: nn.Module, cfg: Config) -> None:
    """Freeze only what no phase trains. Raises ConfigError for a part that the model does not have, and
    for a phase that trains nothing."""
    if not any(phase.freeze or phase.unfreeze for phase in cfg.phases):
        return
    trained: set[int] = set()
    for number in range(len(cfg.phases)):
        freeze_for(model, cfg, number)
        trained |= {id(p) for p in model.parameters() if p.requires_grad}
    freeze_for(model, cfg, 0)
    for phase in cfg.phases:
        unfreeze(model, phase.unfreeze)
    for p in model.parameters():
        p.requires_grad_(id(p) in trained)


def unfreeze(model: nn.Module, prefixes: Sequence[str], key: str = "unfreeze") -> None:
    """Undo `freeze` for the modules `prefixes`. Parameters that the network itself fixes stay so.

    Raises ConfigError, which begins with `key`, for a prefix that names no module.
    """
    for module in _modules(model, prefixes, key):
        fixed = getattr(module, "fixed", ())
        for name, parameter in module.named_parameters(recurse=False):
            parameter.requires_grad_(name not in fixed)
        if isinstance(module, _BatchNorm):
            module.__dict__.pop("train", None)
            module.train(model.training)


def _stay(module: nn.Module, _mode: bool = True) -> nn.Module:
    return module


def _modules(model: nn.Module, prefixes: Sequence[str], key: str) -> Iterator[nn.Module]:
    """The modules named `prefixes`, and all modules in them."""
    named = dict(model.named_modules())
    for prefix in prefixes:
        module = named.get(prefix) if prefix else None
        if module is None or not any(True for _ in module.parameters()):
            known = [
                name
                for name, part in named.items()
                if name and name.count(".") <= 1 and any(True for _ in part.parameters())
            ]
            raise ConfigError(f"{key}: {prefix}: no such part; known: {', '.join(known)}")
        yield from module.modules()
