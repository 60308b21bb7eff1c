"""Normalizer-free networks: sizes, the variance of the signal, standardised weights."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional

from hvdtrain.models import MODELS
from hvdtrain.models.layers import ResidualBlock
from hvdtrain.models.nfnet import (
    ACTIVATION_GAIN,
    ALPHA,
    NF_RESNET,
    NFNET,
    Form,
    NFBlock,
    NFNet,
    ScaledStdConv2d,
    activate,
    expected_variances,
)


@pytest.mark.parametrize(
    ("name", "millions"),
    # Brock et al. 2021 (2102.06171), table 6; timm's results table for the NF-ResNets
    [
        ("nfnet_f0", 71.5),
        ("nfnet_f1", 132.6),
        ("nfnet_f2", 193.8),
        ("nfnet_f3", 254.9),
        ("nfnet_f4", 316.1),
        ("nfnet_f5", 377.2),
        ("nfnet_f6", 438.4),
        ("nf_resnet26", 16.0),
        ("nf_resnet50", 25.56),
        ("nf_resnet101", 44.55),
    ],
)
def test_parameter_count_is_the_published_one(name: str, millions: float) -> None:
    with torch.device("meta"):
        count = sum(p.numel() for p in MODELS[name]().parameters())
    digits = len(str(millions).partition(".")[2])
    assert round(count / 1e6, digits) == millions


def test_f0_has_the_published_multiplications() -> None:
    """12.38 G multiply-adds at 256 px (Brock et al. 2021, table 6)."""
    total = 0

    def count(module: torch.nn.Module, inputs: object, output: torch.Tensor) -> None:
        nonlocal total
        total += output.numel() * module.weight[0].numel()

    with torch.device("meta"):
        model = MODELS["nfnet_f0"]().eval()
        for module in model.modules():
            if isinstance(module, (torch.nn.Conv2d, torch.nn.Linear)):
                module.register_forward_hook(count)
        model(torch.empty(1, 3, 256, 256))
    assert total / 1e9 == pytest.approx(12.38, abs=0.02)


@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_activation_gains_are_one_over_the_deviation(activation: str) -> None:
    """To three digits: the published constants were estimated from samples."""
    z = np.linspace(-12, 12, 400_001)
    density = np.exp(-z * z / 2) / math.sqrt(2 * math.pi) * (z[1] - z[0])
    y = getattr(functional, activation)(torch.from_numpy(z)).numpy()
    variance = (y * y * density).sum() - (y * density).sum() ** 2
    assert ACTIVATION_GAIN[activation] == pytest.approx(variance**-0.5, rel=1e-3)


def test_standardised_weights_are_those_of_the_formula() -> None:
    torch.manual_seed(0)
    conv = ScaledStdConv2d(6, 8, 3, groups=2)
    torch.nn.init.normal_(conv.gain)
    with torch.no_grad():
        conv.weight[0] *= 1e-6  # below the floor
        found = conv.standardised().double().numpy()
    w, g = conv.weight.detach().double().numpy(), conv.gain.detach().double().numpy()
    for i in range(8):
        floor = max(27 * w[i].var(), 1e-4)
        expected = g[i] * (w[i] - w[i].mean()) / math.sqrt(floor)
        np.testing.assert_allclose(found[i], expected, rtol=2e-4, atol=1e-7)
    assert 27 * found[1].var() == pytest.approx(g[1] ** 2, rel=1e-5)
    x = torch.randn(2, 6, 5, 5)
    y = functional.conv2d(x, conv.standardised(), conv.bias, padding=1, groups=2)
    assert torch.equal(conv(x), y)


def test_expected_variances_follow_the_paper() -> None:
    found = list(expected_variances([3, 4]))
    a = ALPHA**2
    assert found == pytest.approx([1, 1 + a, 1 + 2 * a, 1 + 3 * a, 1 + a, 1 + 2 * a, 1 + 3 * a])


@pytest.mark.parametrize(
    ("form", "depths"),
    # White noise loses variance in NFNet's pooled shortcut, as images do not: one stage of it.
    [(NF_RESNET, [3, 3]), (NFNET._replace(group_width=64), [5])],
    ids=["NF-ResNet", "NFNet"],
)
def test_the_variance_of_the_signal_is_the_expected_one(form: Form, depths: list[int]) -> None:
    """Skip gains at 1: behind every block the measured variance is the analytic one."""
    torch.manual_seed(0)
    stem, widths = torch.nn.Identity(), [512] * len(depths)
    model = NFNet(form, stem, 256, widths, depths, None, 10, zero_gamma=False)
    x = torch.randn(16, 256, 12, 12)
    variance = 1.0
    with torch.no_grad():
        for stage in model.stages:
            for position, block in enumerate(stage):
                assert block.beta == pytest.approx(variance**-0.5)
                variance = (1.0 if position == 0 else variance) + ALPHA**2
                x = block(x)
                assert x.var((0, 2, 3)).mean().item() == pytest.approx(variance, rel=0.1)


def test_skip_gain_zero_makes_every_block_its_shortcut() -> None:
    torch.manual_seed(0)
    model = MODELS["nf_resnet26"](num_classes=10)
    blocks = [m for m in model.modules() if isinstance(m, NFBlock)]
    x = torch.randn(2, 64, 8, 8)
    active = activate(x, "relu", blocks[0].beta)
    assert torch.equal(blocks[0](x), blocks[0].shortcut(active))
    y = blocks[0](x)
    assert torch.equal(blocks[1](y), y)
    for block in blocks:
        assert block.skip_gain.ndim == 0
        assert not block.skip_gain


def test_nfnets_come_with_their_own_regularisation() -> None:
    with torch.device("meta"):
        model = MODELS["nfnet_f1"]()
    rates = [m.drop_rate for m in model.modules() if isinstance(m, ResidualBlock)]
    assert len(rates) == 24
    assert rates == pytest.approx([0.25 * i / 24 for i in range(24)])
    assert model.dropout == 0.3
