"""Every kind of network as a program of torch.export, and as ONNX; all networks with HVDTRAIN_ALL_NETWORKS=1."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from hvdtrain.config.schema import Model
from hvdtrain.inference.description import Description
from hvdtrain.inference.export import export
from hvdtrain.inference.opened import OpenedModel
from hvdtrain.models import MODELS, build_model
from tests.unit.inference.conftest import SMALL

KINDS = (
    *("resnet8_cifar", "resnet8_gn", "nf_resnet11_cifar", "resnet9", "airbench94", "resnet18"),
    *("vgg_small", "vgg_sigmoid"),
)
WHOLE = "HVDTRAIN_ALL_NETWORKS" in os.environ
FIXED_SIZE = {("onnx", "vgg_sigmoid"), ("pt2", "resnet18")}
"""The first pools to several positions, which is not ONNX where the image size is free; of 32 px the second leaves
one position, for which torch makes a program of its own."""


def opened(name: str) -> OpenedModel:
    torch.manual_seed(0)
    network = build_model(Model(name=name), 2).eval().requires_grad_(False)
    about = Description(
        model=Model(name=name), num_classes=2, classes=["a", "b"], preprocessing=SMALL
    )
    return OpenedModel(network, about, Path(name), [])


@pytest.mark.parametrize("name", MODELS if WHOLE else KINDS)
@pytest.mark.parametrize("form", ["safetensors", "pt2", "onnx"])
def test_it_exports(name: str, form: str, tmp_path: Path) -> None:
    if form == "onnx":
        pytest.importorskip("onnxscript")
        pytest.importorskip("onnxruntime")
    found = export(opened(name), form, tmp_path / "file")  # type: ignore[arg-type]
    sizes = {tuple(shape[2:]) for shape in found.compared}
    assert (len(sizes) == 1) == any("image size is not" in note for note in found.notes)
    if name in KINDS:
        assert (len(sizes) == 1) == ((form, name) in FIXED_SIZE), (sizes, found.notes)
