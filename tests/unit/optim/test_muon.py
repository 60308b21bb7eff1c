"""Muon equals its authors' formulas in float64; who computes what when ranks share the work."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from hvdtrain.comm.ranks import Solo
from hvdtrain.config.schema import Optimizer
from hvdtrain.engine.reducer import Reducer
from hvdtrain.errors import ConfigError
from hvdtrain.optim import build_optimizer, set_rates
from hvdtrain.optim.muon import Muon, alone, orthogonal, owners_of
from tests.unit.optim.optim_references import DECAY, MOMENTUM, Array, Mixture
from tests.unit.optim.test_optim import STEPS, gradient, rate

SETTINGS: dict[str, Any] = {"name": "muon", "momentum": 0.6, "other_momentum": MOMENTUM}
SETTINGS |= {"weight_decay": DECAY, "newton_schulz_steps": 3}
AIRBENCH = {"normalize_filters": True, "decay_norms_and_biases": True, "other_rate": 4.0}
AIRBENCH |= {"classifier_rate": 2.5, "shift_rate": 0.5}


def newton_schulz64(g: Array, steps: int) -> Array:
    """`zeropower_via_newtonschulz5` of the authors, in float64."""
    x: Array = g.T if g.shape[0] > g.shape[1] else g
    x = x / (np.sqrt((x**2).sum()) + 1e-7)
    for _ in range(steps):
        a = x @ x.T
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return x.T if g.shape[0] > g.shape[1] else x


class Muon64:
    """One matrix or kernel: airbench94_muon's with `normalize`, else that of the authors' package."""

    def __init__(self, w: Array, cfg: Optimizer) -> None:
        self.v, self.cfg = np.zeros_like(w), cfg

    def step(self, w: Array, g: Array, lr: float) -> Array:
        cfg = self.cfg
        self.v = cfg.momentum * self.v + g
        g = g + cfg.momentum * self.v if cfg.nesterov else self.v
        if cfg.normalize_filters:
            w = w * len(w) ** 0.5 / np.sqrt((w**2).sum())
        else:
            w = w * (1 - lr * cfg.weight_decay)
        u = newton_schulz64(g.reshape(len(g), -1), cfg.newton_schulz_steps).reshape(g.shape)
        # The package takes the last two dimensions: those of a kernel are both its side.
        scale = float(max(1.0, g.shape[-2] / g.shape[-1])) ** 0.5
        return w - lr * scale * u


class Sgd64:
    """All other parameters: SGD as torch's."""

    def __init__(self, w: Array, cfg: Optimizer, decay: float) -> None:
        self.v, self.cfg, self.decay = np.zeros_like(w), cfg, decay

    def step(self, w: Array, g: Array, lr: float) -> Array:
        g = g + self.decay * w
        self.v = self.cfg.other_momentum * self.v + g
        return w - lr * (g + self.cfg.other_momentum * self.v if self.cfg.nesterov else self.v)


def model_of(dtype: torch.dtype) -> nn.Module:
    model = Mixture().to(dtype).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    nn.init.normal_(model.zero.weight)  # a matrix with more columns than rows
    model.tall = nn.Linear(3, 8, dtype=dtype)
    model.reducer = Reducer(model.parameters(), Solo())  # allocates the gradients
    return model  # type: ignore[no-any-return]


def references(model: nn.Module, cfg: Optimizer) -> dict[str, tuple[Any, float]]:
    """Of each parameter, its reference and the factor of its rate."""
    found: dict[str, tuple[Any, float]] = {}
    for key, p in model.named_parameters():
        w = p.detach().double().numpy()
        factor = cfg.other_rate
        if key.startswith("classifier."):
            factor = cfg.classifier_rate
        elif p.ndim > 1:
            found[key] = (Muon64(w, cfg), 1.0)
            continue
        elif key == "norm.bias":
            factor *= cfg.shift_rate
        decayed = p.ndim > 1 or cfg.decay_norms_and_biases
        found[key] = (Sgd64(w, cfg, DECAY / factor if decayed else 0.0), factor)
    return found


def trained(dtype: torch.dtype, cfg: Optimizer) -> float:
    """The largest difference from the references after all steps."""
    model = model_of(dtype)
    optimizer = build_optimizer(model, cfg)
    weights = {key: p.detach().double().numpy().copy() for key, p in model.named_parameters()}
    theirs = references(model, cfg)
    random = np.random.default_rng(1)
    for step in range(STEPS):
        lr = 0.1 * rate(step)
        set_rates(optimizer, lr, cfg.momentum)
        for key, p in model.named_parameters():
            noise = 0.1 * random.standard_normal(weights[key].shape)
            assert p.grad is not None
            p.grad.copy_(torch.as_tensor(gradient(p.detach().double().numpy(), noise)))
            reference, factor = theirs[key]
            weights[key] = reference.step(weights[key], gradient(weights[key], noise), factor * lr)
        optimizer.step()
    return max(
        float(np.abs(p.detach().double().numpy() - weights[key]).max())
        for key, p in model.named_parameters()
    )


@pytest.mark.parametrize(
    "form", [{"nesterov": False}, AIRBENCH], ids=["package", "airbench94_muon"]
)
def test_fifty_steps_equal_the_authors_formula(form: dict[str, Any]) -> None:
    cfg = Optimizer.model_validate({**SETTINGS, **form})
    assert trained(torch.float64, cfg) <= 1e-9
    assert trained(torch.float32, cfg) <= 2e-6  # found: 6e-7


@pytest.mark.parametrize("shape", [(24, 90), (90, 24), (1, 7)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_singular_values_become_about_one(shape: tuple[int, int], dtype: torch.dtype) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(2))
    found = orthogonal(matrix, 5, dtype)
    assert found.dtype == dtype
    values = torch.linalg.svdvals(found.float())
    assert 0.6 < float(values.min()) <= float(values.max()) < 1.3
    exact = torch.as_tensor(newton_schulz64(matrix.double().numpy(), 5))
    error = float((found.double() - exact).norm() / exact.norm())
    assert error < (1e-5 if dtype == torch.float32 else 0.03)
    assert not orthogonal(torch.zeros(shape), 5, dtype).any()


def test_precision_and_parameters() -> None:
    """bf16 where the network is computed with fewer digits; the classifier is no hidden matrix."""
    model, cfg = model_of(torch.float32), Optimizer.model_validate(SETTINGS)
    exact, rounded = (
        build_optimizer(model, cfg, autocast=autocast) for autocast in (None, torch.float16)
    )
    assert isinstance(exact, Muon)
    assert isinstance(rounded, Muon)
    matrix = torch.randn(4, 9)
    assert (exact._type(matrix), rounded._type(matrix)) == (torch.float32, torch.bfloat16)
    names = {p.data_ptr(): key for key, p in model.named_parameters()}
    matrices = [group["params"] for group in exact.param_groups if group["matrix"]]
    assert {names[p.data_ptr()] for params in matrices for p in params} == {
        *("conv.weight", "point.weight", "zero.weight", "tall.weight")
    }
    turned = nn.Linear(3, 2, bias=False)
    turned.weight = nn.Parameter(torch.zeros(3, 2).T)
    turned.weight.grad = torch.zeros(3, 2).T
    with pytest.raises(ConfigError, match="muon needs matrices that lie in memory row after row"):
        build_optimizer(turned, cfg)


def test_work_is_shared_out_by_its_cost() -> None:
    matrices = [torch.empty(shape) for shape in ((8, 8), (2, 2), (16, 16), (8, 8), (4, 2))]
    assert owners_of(matrices, 1) == [0] * 5
    assert owners_of(matrices, 2) == [1, 1, 0, 1, 1]
    assert owners_of(matrices, 9) == [1, 4, 0, 2, 3]
    cfg = Optimizer.model_validate({**SETTINGS, "share_work": True})
    two, model = Solo(), model_of(torch.float32)
    two.size = 2
    optimizer = build_optimizer(model, cfg, ranks=two)
    assert isinstance(optimizer, Muon)
    with alone(optimizer):
        assert optimizer.ranks is None
    assert optimizer.ranks is two
    for other in (build_optimizer(model, cfg, ranks=Solo()), build_optimizer(model, cfg)):
        assert isinstance(other, Muon)
        assert other.ranks is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"agc": 0.01}, "Muon's step does not have: leave it out, or use clip_norm"),
        ({"name": "sgd"}, "newton_schulz_steps needs name: muon, found sgd: leave it out"),
        ({"lars_rate": "outside"}, "lars_rate needs name: lars, found muon"),
    ],
)
def test_settings_that_do_not_fit_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Optimizer.model_validate({**SETTINGS, **options})
