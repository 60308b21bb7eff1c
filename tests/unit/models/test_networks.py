"""The list of networks without torch equals the networks themselves."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from hvdtrain.cli.main import main
from hvdtrain.config.load import parse_config
from hvdtrain.config.networks import NETWORKS, check_name
from hvdtrain.config.schema import Model
from hvdtrain.engine.sizes import check_sizes
from hvdtrain.errors import ConfigError
from hvdtrain.models import MODELS, build_model, external
from hvdtrain.models.depths import depths_of
from hvdtrain.models.layers import ResidualBlock
from hvdtrain.models.nfnet import ScaledStdConv2d
from hvdtrain.plan.epochs import make_plan


def shapes_only(model: nn.Module) -> nn.Module:
    """`model` without what changes no shape and is slow on the meta device."""
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.forward = lambda images: images
        elif isinstance(module, ScaledStdConv2d):
            module.standardised = lambda weight=module.weight: weight
    return model


def shortened(model: nn.Module) -> nn.Module:
    """`model` without the blocks of a stage behind its second, which change no shape."""
    for module in model.modules():
        if isinstance(module, nn.Sequential) and isinstance(module[0], ResidualBlock):
            del module[2:]
    return model


def last_side(model: nn.Module, size: int) -> int:
    """Side of the features in front of the last pooling; 0 if images are too small."""
    sides: list[int] = []
    hook = model.pool.register_forward_pre_hook(lambda _, inputs: sides.append(inputs[0].shape[-1]))
    try:
        model(torch.empty(1, 3, size, size, device="meta"))
    except RuntimeError:
        return 0
    finally:
        hook.remove()
    return sides[0]


def test_names() -> None:
    assert list(NETWORKS) == list(MODELS)
    for name in (*MODELS, *(f"{prefix}any" for prefix in external.PREFIXES)):
        check_name(name)
    for name in ("resnet5O", "", "timm", "Resnet50"):
        with pytest.raises(ConfigError, match=r"unknown model; .*known: resnet18, "):
            check_name(name)


@pytest.mark.parametrize("name", MODELS)
def test_shapes(name: str) -> None:
    with torch.device("meta"):
        model = build_model(Model(name=name), 2).eval()
    network = NETWORKS[name]
    assert any(isinstance(m, _BatchNorm) for m in model.modules()) == network.batch_norm
    assert set(depths_of(model, name).values()) == set(range(network.depths))
    sizes = sorted({8, 15, 16, 17, 32, 33, 48, network.smallest, network.smallest - 1} - {0})
    whole = shapes_only(model)
    assert [network.last_side(size) for size in (32, 33)] == [
        last_side(whole, 32),
        last_side(whole, 33),
    ]
    short = shortened(whole)
    assert [network.last_side(size) for size in sizes] == [last_side(short, size) for size in sizes]


def text(name: str, size: object, batch: int, more: str = "") -> str:
    return f"model: {{name: {name}{more}}}\nphases: [{{epochs: 2, image_size: {size}, batch_per_worker: {batch}}}]"


ONE_VALUE = [
    ("resnet18", 32, ""),
    ("resnet50", 8, ""),
    ("resnet18d", "[32, 64]", ""),
    ("preact_resnet18", 8, ""),
    ("resnet11_cifar", 8, ""),
    ("resnet9", 15, ""),
    ("airbench94", 16, ""),
]


@pytest.mark.parametrize(("name", "size", "more"), ONE_VALUE)
@pytest.mark.parametrize("ranks", [1, 2])
def test_batch_norm_of_one_value_is_refused(name: str, size: object, more: str, ranks: int) -> None:
    cfg = parse_config(text(name, size, 1, more))
    pattern = (
        rf"^phases\.0\.batch_per_worker: 1 image of \d+ px is 1 × 1 px in the last stage of {name}"
    )
    with pytest.raises(ConfigError, match=pattern):
        make_plan(cfg, ranks, 100)
    model = build_model(cfg.model, 2)
    with pytest.raises(ConfigError, match=pattern):
        check_sizes(model, cfg)
    assert model.training


@pytest.mark.parametrize(
    ("name", "size", "batch"),
    [
        ("resnet18", 33, 1),
        ("resnet18", 32, 2),
        ("resnet8_cifar", 8, 1),
        ("nf_resnet11_cifar", 8, 1),
    ],
)
def test_more_than_one_value_trains(name: str, size: int, batch: int) -> None:
    cfg = parse_config(text(name, size, batch))
    make_plan(cfg, 1, 100)
    model = build_model(cfg.model, 2)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    check_sizes(model, cfg)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    model(torch.zeros(batch, 3, size, size))


def test_frozen_batch_norms_do_not_count() -> None:
    cfg = parse_config(text("resnet11_cifar", 8, 1, ", freeze: [features]"))
    make_plan(cfg, 1, 100)
    check_sizes(build_model(cfg.model, 2), cfg)


@pytest.mark.parametrize(("name", "size"), [("vgg_small", 15), ("airbench94", 8)])
def test_images_too_small_for_a_network(name: str, size: int) -> None:
    cfg = parse_config(text(name, size, 4))
    least = NETWORKS[name].smallest
    with pytest.raises(ConfigError, match=rf"phases\.0\.image_size: .* to nothing: use {least} px"):
        make_plan(cfg, 1, 100)
    with pytest.raises(ConfigError, match=rf"{name} does not take images of {size} px"):
        check_sizes(build_model(cfg.model, 2), cfg)


@pytest.mark.parametrize("command", [["plan"], ["doctor"]])
def test_an_unknown_model_is_refused_before_training(
    command: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "c.yaml").write_text("data: {train_size: 100}\n" + text("resnet5O", 32, 4))
    monkeypatch.setattr("sys.argv", ["hvdtrain", *command, str(tmp_path / "c.yaml")])
    with pytest.raises(SystemExit) as end:
        main()
    out = capsys.readouterr()
    assert end.value.code == (2 if command == ["plan"] else 1)
    assert re.search(
        "model.name: resnet5O: unknown model; did you mean resnet50", out.out + out.err
    )
