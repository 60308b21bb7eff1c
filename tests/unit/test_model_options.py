"""Pooling, dropout, stochastic depth, blurred strides, freezing, whitening, other libraries."""

import copy
import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional

from hvdtrain import config
from hvdtrain.errors import ConfigError
from hvdtrain.models import build_model, describe_models
from hvdtrain.models.freezing import freeze, unfreeze
from hvdtrain.models.layers import ResidualBlock
from hvdtrain.models.options import (
    BlurConv2d,
    ConcatPool,
    classifier_of,
    is_random,
)
from hvdtrain.models.small import patch_moments


def build(name: str, classes: int = 10, **options: object) -> nn.Module:
    torch.manual_seed(0)
    return build_model(config.Model(name=name, **options), classes)


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
    """Dropped, a block is its shortcut; a block in evaluation is not."""
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
        own = build_model(config.Model(name="nfnet_f0"), 10)
        none = build_model(config.Model(name="nfnet_f0", dropout=0.0, stochastic_depth=0.0), 10)
    assert is_random(own)
    assert not is_random(none)
    assert is_random(build("resnet8_gn", dropout=0.1))
    assert is_random(build("resnet8_gn", stochastic_depth=0.1))
    assert not is_random(build("resnet8_gn"))


def test_width_is_for_wide_networks() -> None:
    assert build("wrn22", width=2).classifier.in_features == 128
    with pytest.raises(ConfigError, match=r"^model\.width: resnet50 has one width; use wrn16, "):
        build("resnet50", width=2)


def test_frozen_parts_stay_as_they_are() -> None:
    model = build("resnet18", freeze=["stem", "stages.0"]).train()
    frozen = [n for n, p in model.named_parameters() if not p.requires_grad]
    assert frozen == [n for n, _ in model.named_parameters() if n.startswith(("stem", "stages.0."))]
    assert len(frozen) == 3 + 12
    before = copy.deepcopy(model.state_dict())
    model(torch.randn(4, 3, 32, 32) + 3).sum().backward()
    after = model.state_dict()
    changed = {n for n, value in after.items() if not torch.equal(value, before[n])}
    assert changed
    assert not any(n.startswith(("stem", "stages.0.")) for n in changed)
    clone = copy.deepcopy(model)
    clone.train()
    assert not clone.stem[1].training
    assert clone.stages[1][0].norm1.training


def test_unfrozen_parts_train_again() -> None:
    model = build("resnet18", freeze=["stem", "stages"])
    unfreeze(model, ["stages.3", "stem"])
    model.train()
    assert model.stem[1].training
    assert model.stages[3][0].norm1.training
    assert not model.stages[2][0].norm1.training
    frozen = {n.split(".")[1] for n, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {"0", "1", "2"}
    mean = model.stem[1].running_mean.clone()
    model(torch.randn(4, 3, 32, 32))
    assert not torch.equal(model.stem[1].running_mean, mean)


def test_what_a_network_keeps_fixed_is_not_unfrozen() -> None:
    model = build("airbench94")
    fixed = [n for n, p in model.named_parameters() if not p.requires_grad]
    assert "whitening.weight" in fixed
    assert len(fixed) == 7
    freeze(model, ["whitening", "features"])
    unfreeze(model, ["whitening", "features"])
    assert [n for n, p in model.named_parameters() if not p.requires_grad] == fixed


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (["steem"], r"model\.freeze: steem: no such part; known: stem, stem\.0, stem\.1, stages, "),
        (["stages.9"], r"stages\.9: no such part"),
        (["pool"], r"pool: no such part"),
        ([""], r"no such part"),
        (["stem", "stages", "classifier"], r"nothing is left to train"),
    ],
)
def test_freezing_what_is_not_there(parts: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build("resnet18", freeze=parts)


def patches(images: torch.Tensor) -> torch.Tensor:
    """All 2×2 patches as rows of 12, in double precision."""
    return images.double().unfold(2, 2, 1).unfold(3, 2, 1).permute(0, 2, 3, 1, 4, 5).reshape(-1, 12)


def test_whitening_makes_the_covariance_the_identity() -> None:
    torch.manual_seed(1)
    model = build("airbench94")
    smooth = functional.avg_pool2d(torch.randn(40, 3, 22, 22), 3, 1)
    images = (smooth + 0.5 * smooth.flip(1)) * 3
    model.whiten(images)
    weight = model.whitening.weight.detach().double().reshape(24, 12)
    assert torch.equal(weight[:12], -weight[12:])
    y = patches(images) @ weight[:12].T
    second = y.T @ y / len(y)
    # Each variance is v / (v + eps); those of the smallest eigenvalues fall short of 1.
    values = torch.linalg.eigvalsh(patches(images).T @ patches(images) / len(y)).flip(0)
    expected = torch.diag(values / (values + 5e-4))
    torch.testing.assert_close(second, expected, rtol=1e-4, atol=1e-4)
    assert expected.diagonal().min() > 0.95
    outputs = model.whitening(images).double()
    torch.testing.assert_close(
        outputs[:, :12].permute(0, 2, 3, 1).reshape(-1, 12), y, rtol=1e-4, atol=1e-4
    )


def test_whitening_over_ranks_is_that_over_all_images() -> None:
    images = torch.randn(12, 3, 10, 10)
    whole, part = build("airbench94"), build("airbench94")
    whole.whiten(images)
    part.whiten(images[:5], lambda sums: sums + patch_moments(images[5:]))
    torch.testing.assert_close(part.whitening.weight, whole.whitening.weight, rtol=1e-4, atol=1e-5)


def test_airbench_starts_as_copies_of_its_inputs() -> None:
    model = build("airbench94")
    layer = model.features[1][0]
    x = torch.randn(1, 24, 6, 6)
    assert torch.equal(layer(x)[:, :24], x)
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert {(n.eps, n.momentum) for n in norms} == {(1e-12, 0.4)}
    assert all(torch.equal(n.weight, torch.ones_like(n.weight)) for n in norms)


class _Other(nn.Module):
    def __init__(self, classes: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 3)
        self.down = nn.Conv2d(16, 16, 3, 2)
        self.fc = nn.Linear(16, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.down(self.conv(x)).mean((2, 3)))


@pytest.fixture
def libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    """A timm and a torchvision that know one model each."""
    timm = ModuleType("timm")
    timm.list_models = lambda: ["other"]
    timm.create_model = lambda name, pretrained, num_classes: _Other(num_classes)
    models = ModuleType("torchvision.models")
    models.list_models = lambda module: ["other", "googlenet"] if module is models else ["fcn"]
    models.get_model = lambda name, weights, num_classes: _Other(num_classes)
    monkeypatch.setitem(sys.modules, "timm", timm)
    monkeypatch.setitem(sys.modules, "torchvision", SimpleNamespace(models=models))
    monkeypatch.setitem(sys.modules, "torchvision.models", models)


@pytest.mark.parametrize("library", ["timm", "torchvision"])
def test_models_of_other_libraries(library: str, libraries: None) -> None:
    model = build(f"{library}:other", 7, blurpool=True, freeze=["conv"])
    assert model(torch.randn(2, 3, 9, 9)).shape == (2, 7)
    assert isinstance(model.down, BlurConv2d)
    assert not model.conv.weight.requires_grad
    assert classifier_of(model) is model.fc
    for name in ("othr", "hf-hub:someone/other", "local-dir:/tmp", "googlenet", "os.system"):
        with pytest.raises(ConfigError, match=rf"^model\.name: {library}:{name}: not among the 1 "):
            build(f"{library}:{name}")
    with pytest.raises(ConfigError, match=r"^model\.dropout: timm:other is not one of hvdtrain's"):
        build("timm:other", dropout=0.5)


@pytest.mark.parametrize("library", ["timm", "torchvision"])
def test_a_library_that_is_missing_is_told_in_one_line(
    library: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ConfigError) as raised:
        build(f"{library}:resnet50")
    assert str(raised.value).startswith(f"model.name: {library}:resnet50: {library} cannot be ")
    assert f"pip install {library}" in str(raised.value)
    assert "\n" not in str(raised.value)


def test_the_list_of_models_names_all() -> None:
    lines = describe_models()
    assert lines[2] == "resnet50          25,557,032 parameters at 1000 classes."
    assert any(line.startswith("wrn22 ") and "model.width: 6 if not set" in line for line in lines)
    assert [line.split()[0] for line in lines[-2:]] == ["timm:NAME", "torchvision:NAME"]
