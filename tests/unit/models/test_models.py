"""The networks: sizes, shapes, starting weights, and what the recipes need of them."""

import re

import pytest
import torch
from torch import nn

from hvdtrain.config.schema import Model
from hvdtrain.errors import ConfigError
from hvdtrain.models import MODELS, build_model
from hvdtrain.models.resnet import BasicBlock, Bottleneck

CIFAR = ["resnet8_cifar", "resnet11_cifar", "resnet20_cifar", "resnet56_cifar", "resnet8_gn"]
LARGE = [f"nfnet_f{i}" for i in range(1, 7)]  # nfnet_f0 with more of the same blocks
SMALL = ["resnet9", "airbench94", "vgg_small", "preact_resnet18", "wrn22", "nf_resnet11_cifar"]


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("name", "classes", "expected"),
    [
        # torchvision 0.28, docs/stable/models.html, "num_params"
        ("resnet18", 1000, 11_689_512),
        ("resnet34", 1000, 21_797_672),
        ("resnet50", 1000, 25_557_032),
        ("resnet101", 1000, 44_549_160),
        ("resnet152", 1000, 60_192_808),
        # timm 1.0, its own count
        ("resnet18d", 1000, 11_708_744),
        ("resnet34d", 1000, 21_816_904),
        ("resnet50d", 1000, 25_576_264),
        ("resnet101d", 1000, 44_568_392),
        # He et al. 2015, table 6: 0.27 M and 0.85 M
        ("resnet20_cifar", 10, 272_474),
        ("resnet56_cifar", 10, 855_770),
        # the published code of Page 2018; weights and biases of Jordan 2024 (1.97 M) and the
        # 1,152 norm scales that stay 1
        ("resnet9", 10, 6_573_120),
        ("airbench94", 10, 1_971_640 + 1_152),
    ],
)
def test_parameter_count_is_the_published_one(name: str, classes: int, expected: int) -> None:
    with torch.device("meta"):
        assert parameters(MODELS[name](num_classes=classes)) == expected


def test_resnet50_has_the_batch_norms_and_buffers_of_v1_5() -> None:
    with torch.device("meta"):
        model = MODELS["resnet50"]()
    assert sum(isinstance(m, nn.BatchNorm2d) for m in model.modules()) == 53
    for block in model.modules():
        if isinstance(block, Bottleneck):
            assert block.conv1.stride == (1, 1)
    strides = [b.conv2.stride[0] for b in model.modules() if isinstance(b, Bottleneck)]
    assert strides == [1, 1, 1, 2, 1, 1, 1, 2, 1, 1, 1, 1, 1, 2, 1, 1]


def test_resnet50_costs_the_published_multiplications() -> None:
    """4.09 G multiply-adds at 224 px for v1.5 (v1 has 3.8 G): the stride sits on the 3×3."""
    total = 0

    def count(module: nn.Module, inputs: object, output: torch.Tensor) -> None:
        nonlocal total
        weight = module.weight
        assert isinstance(weight, torch.Tensor)
        total += output.numel() * weight[0].numel()

    with torch.device("meta"):
        model = MODELS["resnet50"]()
        for module in model.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                module.register_forward_hook(count)
        model(torch.empty(1, 3, 224, 224))
    assert total == 4_089_184_256


@pytest.mark.parametrize("name", [n for n in MODELS if n not in LARGE])
def test_any_image_size_and_class_count(name: str) -> None:
    classes = 2 if name == "vgg_sigmoid" else 7
    with torch.device("meta"):
        model = build_model(Model(name=name), num_classes=classes).eval()
        for height, width in [(32, 32), (48, 40), (193, 225)]:
            assert model(torch.empty(2, 3, height, width)).shape == (2, classes)
    assert isinstance(model.classifier, nn.Linear)


@pytest.mark.parametrize("name", sorted(MODELS))
def test_the_size_in_the_description_is_right(name: str) -> None:
    text = MODELS[name].__doc__
    counts = re.findall(r"([\d,]{6,}) parameters", text)
    with torch.device("meta"):
        found = parameters(MODELS[name]())
    for count in counts:
        classes = int(re.search(r"(\d+) classes", text)[1])
        with torch.device("meta"):
            assert parameters(MODELS[name](num_classes=classes)) == int(count.replace(",", ""))
    if millions := re.search(r"([\d.]+) million", text):
        assert f"{found / 1e6:.1f}" == millions[1]


@pytest.mark.parametrize(
    ("name", "width", "millions"),
    # Zagoruyko and Komodakis 2016, tables 2, 3 and 5
    [
        ("wrn16", 8, 11.0),
        ("wrn16", 10, 17.1),
        ("wrn22", 8, 17.2),
        ("wrn22", 10, 26.8),
        ("wrn28", 10, 36.5),
    ],
)
def test_wide_resnets_have_the_published_size(name: str, width: int, millions: float) -> None:
    with torch.device("meta"):
        model = build_model(Model(name=name, width=width), num_classes=10)
    assert round(parameters(model) / 1e6, 1) == millions
    # depth = 6n + 4: convolutions of the branches, the stem, and the three projections
    depth = int(name.removeprefix("wrn"))
    assert sum(isinstance(m, nn.Conv2d) for m in model.modules()) == depth - 4 + 1 + 3


def test_resnet_d_sees_every_pixel_in_its_shortcuts() -> None:
    """A 1×1 convolution of stride 2 ignores three pixels of four; the mean before it does not."""
    torch.manual_seed(0)
    for name, seen in (("resnet18", 1 / 4), ("resnet18d", 1.0)):
        path = MODELS[name]().eval().stages[1][0].shortcut
        x = torch.randn(1, 64, 8, 8, requires_grad=True)
        path(x).sum().backward()
        assert (x.grad != 0).float().mean() == seen


@pytest.mark.parametrize(
    "name", ["resnet18", "resnet50", "resnet18d", "nf_resnet26", *CIFAR, *SMALL]
)
def test_every_parameter_gets_a_gradient(name: str) -> None:
    torch.manual_seed(0)
    model = build_model(Model(name=name, zero_gamma=False), num_classes=5)
    loss = nn.functional.cross_entropy(model(torch.randn(4, 3, 32, 32)), torch.arange(4))
    loss.backward()
    without = [
        n
        for n, p in model.named_parameters()
        if p.requires_grad and (p.grad is None or not p.grad.any())
    ]
    assert without == []


def test_weights_start_as_goyal_et_al_say() -> None:
    torch.manual_seed(0)
    model = MODELS["resnet50"](num_classes=1000)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            fan_out = module.out_channels * module.kernel_size[0] ** 2
            assert module.bias is None
            assert module.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.05)
    assert model.classifier.weight.std().item() == pytest.approx(0.01, rel=0.02)
    assert not model.classifier.bias.any()


@pytest.mark.parametrize("name", ["resnet18", "resnet50", *CIFAR])
def test_zero_gamma_makes_every_block_its_shortcut(name: str) -> None:
    blocks = (BasicBlock, Bottleneck)
    zeroed = build_model(Model(name=name, zero_gamma=True), num_classes=10)
    plain = build_model(Model(name=name, zero_gamma=False), num_classes=10)
    for block in (m for m in zeroed.modules() if isinstance(m, blocks)):
        assert not block.last_norm.weight.any()
        x = torch.rand(2, next(block.parameters()).shape[1], 8, 8)
        assert torch.equal(block(x), torch.relu(block.shortcut(x)))
        scales = [
            n.weight for n in block.modules() if isinstance(n, (nn.BatchNorm2d, nn.GroupNorm))
        ]
        assert sum(not scale.any() for scale in scales) == 1
    for block in (m for m in plain.modules() if isinstance(m, blocks)):
        assert torch.equal(block.last_norm.weight, torch.ones_like(block.last_norm.weight))


def test_only_weights_have_more_than_one_dimension() -> None:
    """The optimizer decays the parameters with ndim > 1: no norm and no bias may be among them."""
    for name in MODELS:
        with torch.device("meta"):
            model = MODELS[name]()
        for module in model.modules():
            for parameter_name, parameter in module.named_parameters(recurse=False):
                is_weight = (
                    isinstance(module, (nn.Conv2d, nn.Linear)) and parameter_name == "weight"
                )
                assert (parameter.ndim > 1) == is_weight


def test_group_norm_net_does_not_look_across_images() -> None:
    torch.manual_seed(0)
    model = build_model(Model(name="resnet8_gn", zero_gamma=False), num_classes=10).train()
    images = torch.randn(8, 3, 32, 32)
    parts = torch.cat([model(images[:3]), model(images[3:])])
    torch.testing.assert_close(model(images), parts, rtol=1e-5, atol=1e-6)
    assert not list(model.buffers())


@pytest.mark.parametrize("name", ["resnet18", "nf_resnet26", *CIFAR, *SMALL])
def test_channels_last_and_bf16_give_the_same_logits(name: str) -> None:
    torch.manual_seed(0)
    model = build_model(Model(name=name, zero_gamma=False), num_classes=10).eval()
    images = torch.randn(4, 3, 32, 32)
    with torch.no_grad():
        expected = model(images)
        model.to(memory_format=torch.channels_last)
        images = images.contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(model(images), expected, rtol=1e-4, atol=1e-5)
        with torch.autocast("cpu", torch.bfloat16):
            low = model(images).float()
    assert (low - expected).abs().max() < 0.05 * expected.abs().max()


def test_the_same_seed_gives_the_same_weights() -> None:
    torch.manual_seed(3)
    first = build_model(Model(name="resnet20_cifar"), num_classes=10)
    torch.manual_seed(3)
    second = build_model(Model(name="resnet20_cifar"), num_classes=10)
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)


def test_unknown_model_names_the_nearest_and_all_known() -> None:
    with pytest.raises(ConfigError) as raised:
        build_model(Model(name="resnet5O"), num_classes=10)
    message = str(raised.value)
    assert message.startswith("model.name: resnet5O: unknown model; did you mean resnet50? known: ")
    assert all(name in message for name in MODELS)
    with pytest.raises(ConfigError, match=r"^model\.name: vgg: unknown model; known: resnet18, "):
        build_model(Model(name="vgg"), num_classes=10)
