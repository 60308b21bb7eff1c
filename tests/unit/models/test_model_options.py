"""Pooling, dropout, stochastic depth, blurred strides, width."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from hvdtrain.config.schema import Model
from hvdtrain.errors import ConfigError
from hvdtrain.models import build_model
from hvdtrain.models.layers import ResidualBlock
from hvdtrain.models.options import BlurConv2d, ConcatPool, is_random
from tests.unit.models.model_samples import build


@pytest.mark.parametrize("size", [(7, 7), (8, 6), (1, 1)])
def test_blurred_convolution_is_binomial_then_strided(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(16, 8, 3, 2, padding=1, bias=False)
    x = torch.randn(2, 16, *size)
    line = torch.tensor([1.0, 2.0, 1.0])
    kernel = (line[:, None] * line / 16).expand(16, 1, 3, 3)
    expected = conv(functional.conv2d(x, kernel, padding=1, groups=16))
    conv.__class__ = BlurConv2d
    torch.testing.assert_close(conv(x), expected, rtol=1e-5, atol=1e-6)


def test_blurpool_changes_strided_convolutions_only_and_no_weight() -> None:
    plain, blurred = build("resnet18"), build("resnet18", blurpool=True)
    names = [name for name, m in blurred.named_modules() if isinstance(m, BlurConv2d)]
    assert names == [f"stages.{s}.0.{c}" for s in (1, 2, 3) for c in ("conv1", "shortcut.0")]
    for (a, x), (b, y) in zip(
        plain.state_dict().items(), blurred.state_dict().items(), strict=True
    ):
        assert a == b
        assert torch.equal(x, y)
    images = torch.randn(2, 3, 40, 48)
    assert blurred(images).shape == (2, 10)
    with pytest.raises(ConfigError, match=r"^model\.blurpool: resnet9 has no plain strided"):
        build("resnet9", blurpool=True)


def test_concat_pool_is_maximum_then_mean() -> None:
    x = torch.randn(3, 5, 4, 6)
    found = ConcatPool()(x).flatten(1)
    assert torch.equal(found[:, :5], x.flatten(2).max(2).values)
    torch.testing.assert_close(found[:, 5:], x.flatten(2).mean(2))
    model = build("resnet20_cifar", pool="concat")
    assert model.classifier.weight.shape == (10, 128)
    assert model.classifier.weight.std().item() == pytest.approx(0.01, rel=0.1)
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 10)
    assert isinstance(build("resnet11_cifar", pool="avg").pool, nn.AdaptiveAvgPool2d)


def test_dropout_is_before_the_classifier_and_in_training_only() -> None:
    model = build("resnet8_gn", dropout=0.5)
    model.classifier = nn.Identity()
    images = torch.randn(64, 3, 16, 16)
    whole = model.eval()(images)
    kept = model.train()(images)
    dropped = kept == 0
    assert 0.4 < dropped.float().mean() < 0.6
    torch.testing.assert_close(kept[~dropped], 2 * whole[~dropped])


def test_stochastic_depth_drops_whole_images_and_keeps_the_mean() -> None:
    torch.manual_seed(0)
    block = ResidualBlock()
    block.drop_rate = 0.25
    branch = torch.rand(4000, 3, 2, 2) + 1
    found = block.drop(branch)
    dropped = (found == 0).flatten(1)
    assert torch.equal(dropped.all(1), dropped.any(1))
    assert dropped[:, 0].float().mean().item() == pytest.approx(0.25, abs=0.03)
    torch.testing.assert_close(found[~dropped[:, 0]], branch[~dropped[:, 0]] / 0.75)
    assert torch.equal(block.eval().drop(branch), branch)


def test_branches_that_are_kept_may_stay_as_they_are() -> None:
    """`stochastic_depth_rescale: false`: the same branches are dropped, and no other is scaled."""
    model = build("resnet8_gn", stochastic_depth=0.5, stochastic_depth_rescale=False)
    blocks = [m for m in model.modules() if isinstance(m, ResidualBlock)]
    assert [block.rescale for block in blocks if block.drop_rate] == [False, False]
    branch = torch.rand(200, 3, 2, 2) + 1
    torch.manual_seed(0)
    plain = blocks[-1].drop(branch)
    blocks[-1].rescale = True
    torch.manual_seed(0)
    scaled = blocks[-1].drop(branch)
    torch.testing.assert_close(scaled, plain / (1 - blocks[-1].drop_rate))
    kept = (plain != 0).flatten(1).all(1)
    assert 0 < kept.sum() < 200
    assert torch.equal(plain[kept], branch[kept])
    for name in ("resnet8_gn", "vgg_small"):
        with pytest.raises(ConfigError, match=rf"^model\.stochastic_depth_rescale: .*{name} drops"):
            build(name, stochastic_depth_rescale=False)


def test_fan_in_is_the_same_draw_with_another_deviation() -> None:
    plain, out, into = (
        build("resnet18"),
        build("resnet18", init="fan_out"),
        build("resnet18", init="fan_in"),
    )
    for (name, a), b, c in zip(
        plain.state_dict().items(),
        out.state_dict().values(),
        into.state_dict().values(),
        strict=True,
    ):
        assert torch.equal(a, b)
        if a.ndim < 4:
            assert torch.equal(a, c), name
        else:
            fan_in = c[0].numel()
            assert c.std().item() == pytest.approx((2 / fan_in) ** 0.5, rel=0.05), name
            torch.testing.assert_close(c, a * (a.shape[0] / a.shape[1]) ** 0.5)
    with pytest.raises(ValueError, match="init has no effect with weights"):
        Model(init="fan_in", weights="w.safetensors")
    for name in ("nfnet_f0", "airbench94", "vgg_sigmoid"):
        with (
            torch.device("meta"),
            pytest.raises(ConfigError, match=rf"^model\.init: {name} has a rule"),
        ):
            build(name, classes=2, init="fan_in")


def test_stochastic_depth_rises_with_the_block_and_is_in_the_branch() -> None:
    model = build("resnet20_cifar", stochastic_depth=0.9, zero_gamma=False)
    blocks = [m for m in model.modules() if isinstance(m, ResidualBlock)]
    assert [b.drop_rate for b in blocks] == pytest.approx([0.1 * i for i in range(9)])
    last = blocks[-1].train()
    x = torch.rand(200, 64, 4, 4)
    kept = (last(x) == x).flatten(1).all(1)  # inputs are positive, so the ReLU changes none
    assert kept.float().mean().item() == pytest.approx(0.8, abs=0.1)
    with pytest.raises(ConfigError, match=r"^model\.stochastic_depth: vgg_small has no resid"):
        build("vgg_small", stochastic_depth=0.1)


@pytest.mark.parametrize("name", ["resnet50", "preact_resnet18", "nf_resnet26", "resnet9"])
def test_every_kind_of_block_can_drop_its_branch(name: str) -> None:
    """A block whose branch is dropped is its shortcut; in evaluation none is dropped."""
    model = build(name, zero_gamma=False).train()
    block = next(m for m in model.modules() if isinstance(m, ResidualBlock))
    width = next(p for p in block.parameters() if p.ndim == 4).shape[1]
    x = torch.rand(2, width, 8, 8)
    whole = block(x)
    block.drop_rate = 1 - 1e-9
    dropped = block(x)
    assert not torch.equal(dropped, whole)
    if getattr(block, "shortcut", None) is None:
        assert torch.equal(dropped, x)
    elif name == "resnet50":
        assert torch.equal(dropped, block.shortcut(x).relu())


def test_regularisation_of_a_network_can_be_set_to_none() -> None:
    with torch.device("meta"):
        own = build_model(Model(name="nfnet_f0"), 10)
        none = build_model(Model(name="nfnet_f0", dropout=0.0, stochastic_depth=0.0), 10)
    assert is_random(own)
    assert not is_random(none)
    assert is_random(build("resnet8_gn", dropout=0.1))
    assert is_random(build("resnet8_gn", stochastic_depth=0.1))
    assert not is_random(build("resnet8_gn"))


def test_width_is_for_wide_networks() -> None:
    assert build("wrn22", width=2).classifier.in_features == 128
    with torch.device("meta"):  # the network of fast.ai's entry
        model = build("wrn22", width=6, pool="avg")
    assert sum(p.numel() for p in model.parameters()) == 9_658_458
    assert isinstance(model.pool, nn.AdaptiveAvgPool2d)
    with pytest.raises(ConfigError, match=r"^model\.width: resnet50 has one width; use wrn16, "):
        build("resnet50", width=2)
