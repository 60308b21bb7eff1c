"""Networks to test with."""

import torch
from torch import nn

from hvdtrain.config import schema as config
from hvdtrain.models import build_model


def build(name: str, classes: int = 10, **options: object) -> nn.Module:
    torch.manual_seed(0)
    return build_model(config.Model(name=name, **options), classes)
