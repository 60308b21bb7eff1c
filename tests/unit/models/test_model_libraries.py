"""Models of timm and torchvision, and the list of all."""

import sys
from collections.abc import Callable
from types import ModuleType, SimpleNamespace

import pytest
import torch
from torch import nn

from hvdtrain.errors import ConfigError
from hvdtrain.models import describe_models
from hvdtrain.models.options import BlurConv2d, classifier_of
from tests.unit.models.model_samples import build


class _Other(nn.Module):
    def __init__(self, classes: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 3)
        self.down = nn.Conv2d(16, 16, 3, 2)
        self.fc = nn.Linear(16, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.down(self.conv(x)).mean((2, 3)))


def _made_by(option: str) -> Callable[..., nn.Module]:
    """Makes a network that takes this option, unless it has 3 classes."""

    def make(name: str, num_classes: int, **options: object) -> nn.Module:
        given = options.pop(option, None)
        if num_classes == 3 and given is not None:
            raise TypeError(f"__init__() got an unexpected keyword argument '{option}'")
        model = _Other(num_classes)
        model.zero_gamma = given
        return model

    return make


@pytest.fixture
def libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    """A timm and a torchvision that know one model each."""
    timm = ModuleType("timm")
    timm.list_models = lambda: ["other"]
    timm.create_model = _made_by("zero_init_last")
    models = ModuleType("torchvision.models")
    models.list_models = lambda module: ["other", "googlenet"] if module is models else ["fcn"]
    models.get_model = _made_by("zero_init_residual")
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
    assert model.zero_gamma is True
    assert build(f"{library}:other", 7, zero_gamma=False).zero_gamma is False
    assert build(f"{library}:other", 3).zero_gamma is None
    for name in ("othr", "hf-hub:someone/other", "local-dir:/tmp", "googlenet", "os.system"):
        with pytest.raises(ConfigError, match=rf"^model\.name: {library}:{name}: not among the 1 "):
            build(f"{library}:{name}")
    with pytest.raises(ConfigError, match=r"^model\.dropout: timm:other is not one of hvdtrain's"):
        build("timm:other", dropout=0.5)


@pytest.mark.parametrize("library", ["timm", "torchvision"])
def test_a_missing_library_is_reported_in_one_line(
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
