"""Rates of single parameters: batch-norm shifts, the classifier, stages; their decay; what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from hvdtrain.comm.ranks import Solo
from hvdtrain.config.load import parse_config
from hvdtrain.config.schema import Optimizer
from hvdtrain.engine.build import free_parts, init_state
from hvdtrain.errors import ConfigError
from hvdtrain.models.depths import depths_of
from hvdtrain.optim import build_optimizer, set_rates
from hvdtrain.plan.epochs import make_plan
from tests.step_samples import network
from tests.unit.optim.optim_references import mixture


def rates(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, tuple[Any, ...]]:
    """Rate and decay of each parameter at the rate 2."""
    set_rates(optimizer, 2.0, 0.9)
    names = {p.data_ptr(): key for key, p in model.named_parameters()}
    return {
        names[p.data_ptr()]: (group["lr"], group["weight_decay"])
        for group in optimizer.param_groups
        for p in group["params"]
    }


@pytest.mark.parametrize("name", ["sgd", "adamw", "muon"])
def test_rate_times_decay_stays(name: str) -> None:
    """airbench94: rate × 64 and decay / 64 for the shifts of its norms."""
    model, _ = mixture()
    settings = {"weight_decay": 0.25, "decay_norms_and_biases": True, "shift_rate": 64.0}
    cfg = Optimizer.model_validate({"name": name, **settings, "classifier_rate": 0.5})
    found = rates(model, build_optimizer(model, cfg))
    assert found.pop("norm.bias") == (128.0, 0.25 / 64)
    assert found.pop("classifier.weight") == found.pop("classifier.bias") == (1.0, 0.5)
    assert set(found.values()) == {(2.0, 0.25)}


def test_shifts_without_decay_have_none() -> None:
    model, _ = mixture()
    found = rates(model, build_optimizer(model, Optimizer(shift_rate=64.0)))
    assert found["norm.bias"] == (128.0, 0.0)
    assert found["conv.weight"] == (2.0, 1e-4)
    plain = network()
    for p in plain.parameters():
        p.grad = torch.zeros_like(p)
    with pytest.raises(ConfigError, match="shift_rate: this model has no batch norm"):
        build_optimizer(plain, Optimizer(shift_rate=64.0))


def state(model: str, optimizer: str) -> Any:
    text = (
        f"model: {{name: {model}}}\noptimizer: {optimizer}\nphases: [{{epochs: 1, image_size: 32}}]"
    )
    return init_state(parse_config(text), Solo(), torch.device("cpu"), 10)


@pytest.mark.parametrize("rule", ["sgd", "muon"])
def test_the_rate_falls_from_stage_to_stage(rule: str) -> None:
    """As in timm and BEiT, the decay is not divided: rate × decay falls with the rate."""
    own = state("wrn16", f"{{name: {rule}, layer_decay: 0.5, weight_decay: 0.25}}")
    found = rates(own.model, own.optimizer)
    parts = {"classifier": 2.0, "norm": 2.0, "stages.2": 1.0, "stages.1": 0.5, "stages.0": 0.25}
    for part, rate in {**parts, "stem": 0.125}.items():
        of_part = {key: value for key, value in found.items() if key.startswith(f"{part}.")}
        assert of_part
        for key, value in of_part.items():
            decayed = own.model.get_parameter(key).ndim > 1
            assert value == (rate, 0.25 if decayed else 0.0), key


def test_stages_of_another_library_are_not_known() -> None:
    with pytest.raises(
        ConfigError, match=r"layer_decay: timm:resnet18 is not one of hvdtrain's own"
    ):
        depths_of(network(), "timm:resnet18")


def test_airbench94() -> None:
    """Shifts of norms at 64 times the rate; the bias of the whitening layer is trained for 3 epochs."""
    cfg = parse_config(
        "model: {name: airbench94}\n"
        "optimizer: {shift_rate: 64, weight_decay: 0.5, decay_norms_and_biases: true}\n"
        "phases: [{epochs: 3, image_size: 32}, {epochs: 7, image_size: 32, freeze: [whitening]}]\n"
    )
    airbench = init_state(cfg, Solo(), torch.device("cpu"), 10)
    bias = airbench.model.get_parameter("whitening.bias")
    epochs = make_plan(cfg, 1, 50000).epochs
    for epoch in (0, 2, 3, 9):
        free_parts(airbench, cfg, epochs[epoch])
        assert bias.requires_grad == (epoch < 3)
        assert not airbench.model.get_parameter("whitening.weight").requires_grad
    for key, value in rates(airbench.model, airbench.optimizer).items():
        shift = key.startswith("features") and key.endswith("bias")
        assert value == ((128.0, 0.5 / 64) if shift else (2.0, 0.5)), key
