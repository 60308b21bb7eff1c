"""Tries a network on the smallest images of the run before training, in one forward pass."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from hvdtrain.config.schema import Config
from hvdtrain.errors import ConfigError, is_out_of_memory
from hvdtrain.plan.epochs import one_value


def check_sizes(model: nn.Module, cfg: Config) -> None:
    """Raise ConfigError if the network cannot take the smallest images of a phase, or if a batch norm
    would get one value per channel. The network is not changed.

    Square images; those of `rect_val` are larger.
    """
    seen: set[int] = set()
    for number, phase in enumerate(cfg.phases):
        trained = min(phase.image_size_at(epoch) for epoch in range(phase.epochs))
        evaluated = phase.val_image_size or trained
        for key, size in (("image_size", trained), ("val_image_size", evaluated)):
            where = f"phases.{number}"
            single = phase.batch_per_worker == 1 and key == "image_size"
            if size in seen and not single:
                continue
            seen.add(size)
            if _fewest_values(model, size, f"{where}.{key}", cfg.model.name) == 1 and single:
                raise ConfigError(one_value(where, cfg.model.name, size))


@torch.no_grad()
def _fewest_values(model: nn.Module, size: int, where: str, name: str) -> int:
    """The least number of values per channel of one image in a batch norm that is trained; 0: none."""
    values: list[int] = []

    def count(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if "train" not in vars(module):  # a frozen one stays in evaluation mode
            values.append(inputs[0][:, :1].numel())

    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    hooks = [norm.register_forward_pre_hook(count) for norm in norms]
    was_training, device = model.training, next(model.parameters()).device
    model.eval()
    try:
        model(torch.zeros(1, 3, size, size, device=device))
    except (RuntimeError, ValueError, AssertionError) as error:
        if is_out_of_memory(error):
            raise
        text = str(error).split("\n")[0]
        raise ConfigError(f"{where}: {name} does not take images of {size} px: {text}") from None
    finally:
        model.train(was_training)
        for hook in hooks:
            hook.remove()
    return min(values, default=0)
