"""Networks to test with."""

import torch
from torch import nn

from hvdtrain.config.schema import Model
from hvdtrain.models import build_model


def build(name: str, classes: int = 10, **options: object) -> nn.Module:
    torch.manual_seed(0)
    return build_model(Model(name=name, **options), classes)
