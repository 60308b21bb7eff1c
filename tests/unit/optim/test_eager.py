"""No start waits for the import of torch's compiler, which nothing here uses."""

from __future__ import annotations

import subprocess
import sys

import pytest

from hvdtrain.config.schema import Config
from hvdtrain.models import build_model
from hvdtrain.preflight.survey import MOMENTS, checkpoint_bytes
from tests.launch import environment

CODE = """
PHASE = {"epochs": 1, "image_size": 16, "batch_per_worker": 4}

def config(**sections):
    return Config.model_validate({"phases": [PHASE], **sections})

import sys
import torch
from hvdtrain.config.schema import Config
from hvdtrain.models import MODELS
from hvdtrain.optim import build_optimizer, set_rates
from hvdtrain.preflight.survey import checkpoint_bytes
for name in MODELS:
    classes = 2 if name == "vgg_sigmoid" else 10
    assert checkpoint_bytes(config(model={"name": name, "num_classes": classes}))
for name in ("sgd", "lars", "lamb", "adamw", "muon"):
    layer = torch.nn.Linear(3, 2)
    before = layer.weight.detach().clone()
    layer.weight.grad, layer.bias.grad = torch.ones(2, 3), torch.ones(2)
    cfg = config(optimizer={"name": name})
    optimizer = build_optimizer(layer, cfg.optimizer)
    set_rates(optimizer, 0.1, 0.9)
    optimizer.step()
    assert not torch.equal(layer.weight, before)
    optimizer.load_state_dict(optimizer.state_dict())
    optimizer.zero_grad()
print([name for name in sys.modules if name.startswith("torch._dynamo")])
"""


def test_optimizers_and_the_size_of_a_checkpoint() -> None:
    done = subprocess.run(
        [sys.executable, "-c", CODE], env=environment(), capture_output=True, text=True
    )
    assert done.stdout == "[]\n", done.stderr


@pytest.mark.parametrize("name", ["resnet8_cifar", "nf_resnet11_cifar", "vgg_small"])
def test_the_size_is_that_of_a_model_with_weights(name: str) -> None:
    phase = {"epochs": 1, "image_size": 16, "batch_per_worker": 4}
    model = {"name": name, "num_classes": 10}
    cfg = Config.model_validate({"model": model, "phases": [phase]})
    state = build_model(cfg.model, 10).state_dict()
    weights = {key for key, _ in build_model(cfg.model, 10).named_parameters()}
    tensors = [
        (1 + MOMENTS["sgd"]) * t.nbytes if k in weights else t.nbytes for k, t in state.items()
    ]
    assert checkpoint_bytes(cfg) == sum(tensors)
