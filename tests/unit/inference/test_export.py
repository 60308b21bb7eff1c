"""Exports: each file, read by the program that it is for, gives the network's logits."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import safetensors
import torch
from typer.testing import CliRunner

from hvdtrain.cli.main import app
from hvdtrain.errors import CheckpointError, ConfigError, HvdtrainError
from hvdtrain.inference import export as export_module
from hvdtrain.inference.classifier import load
from hvdtrain.inference.export import export
from hvdtrain.inference.opened import open_model
from hvdtrain.models import MODELS
from tests.study_runs import made_run

PLAIN_TORCH = """
import sys, torch
try:
    import hvdtrain
except ImportError:
    pass
else:
    sys.exit("hvdtrain can be imported")
program = torch.export.load("net.pt2").module()
for inputs, logits in torch.load("pairs.pt", weights_only=True):
    found = program(inputs)
    assert (found - logits).abs().max() <= 1e-4, (inputs.shape, (found - logits).abs().max())
"""


def inputs() -> list[torch.Tensor]:
    random = torch.Generator().manual_seed(5)
    shapes = [(1, 16, 16), (5, 16, 16), (2, 40, 24)]
    return [torch.randn((n, 3, h, w), generator=random) for n, h, w in shapes]


def test_safetensors_is_a_classifier(run: Path, images: Path, tmp_path: Path) -> None:
    file = tmp_path / "net.safetensors"
    ended = CliRunner().invoke(app, ["export", str(run), "-o", str(file), "--json"])
    assert ended.exit_code == 0, ended.output
    found = json.loads(ended.stdout)
    assert found["difference"] <= 1e-4
    assert found["images"] == 8
    before, after = load(run, "cpu"), load(file, "cpu")
    paths = sorted((images / "val").rglob("*.png"))
    for one, other in zip(before.predict(paths), after.predict(paths), strict=True):
        assert one.classes == other.classes
        assert one.probabilities == pytest.approx(other.probabilities, abs=1e-6)
    with safetensors.safe_open(file, "pt") as opened:
        metadata = opened.metadata()
    assert json.loads(metadata["classes"]) == ["cat", "dog"]
    assert json.loads(metadata["preprocessing"])["image_size"] == 16
    assert str(images) not in "".join(metadata.values())


def test_pt2_needs_torch_alone(run: Path, tmp_path: Path) -> None:
    opened = open_model(run, torch.device("cpu"))
    found = export(opened, "pt2", tmp_path / "net.pt2")
    assert [2, 3, 48, 16] in found.compared  # other sizes than that of training
    torch.save([(one, opened.network(one)) for one in inputs()], tmp_path / "pairs.pt")
    (tmp_path / "plain.py").write_text(PLAIN_TORCH)
    hidden = "import importlib.abc,sys\nclass No(importlib.abc.MetaPathFinder):\n  def find_spec(s,n,p,t=None):\n    if n.split('.')[0] in ('hvdtrain','pipelines'): raise ModuleNotFoundError(n)\nsys.meta_path.insert(0,No())\nimport runpy; runpy.run_path('plain.py')"
    environment = {**os.environ, "PYTHONPATH": ""}
    ended = subprocess.run(
        [sys.executable, "-c", hidden],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stderr


def test_onnx_by_its_runtime(run: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    opened = open_model(run, torch.device("cpu"))
    export(opened, "onnx", tmp_path / "net.onnx")
    session = runtime.InferenceSession(str(tmp_path / "net.onnx"))
    for one in inputs():
        [logits] = session.run(["logits"], {"images": one.numpy()})
        assert np.abs(logits - opened.network(one).numpy()).max() <= 1e-4
    metadata = session.get_modelmeta().custom_metadata_map
    assert json.loads(metadata["classes"]) == ["cat", "dog"]


def library_of(name: str) -> ModuleType:
    """The library, also where its own operators, which no classifier uses, are of another build than torch."""
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"needs {name}")
    try:  # a first import that fails leaves nothing behind
        importlib.import_module("torchvision")
    except RuntimeError:
        for operator in ("nms", "qnms"):
            boxes = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
            torch.library.define(f"torchvision::{operator}", boxes)
    return importlib.import_module("torchvision.models" if name == "torchvision" else name)


@pytest.mark.parametrize(
    ("model", "library", "theirs"),
    [("resnet18", "torchvision", "resnet18"), ("resnet18d", "timm", "resnet18d")],
)
def test_names_of_libraries(
    images: Path, tmp_path: Path, model: str, library: str, theirs: str
) -> None:
    module = library_of(library)
    run = made_run(tmp_path / "run", images, model=model, classes=("cat", "dog"), size=32)
    opened = open_model(run, torch.device("cpu"))
    file = tmp_path / "net.safetensors"
    export(opened, "safetensors", file, library)  # type: ignore[arg-type]
    make = module.get_model if library == "torchvision" else module.create_model
    network = make(theirs, num_classes=2)
    network.load_state_dict(safetensors.torch.load_file(file))
    one = torch.randn(2, 3, 64, 32, generator=torch.Generator().manual_seed(5))
    network.eval()
    with torch.no_grad():
        assert (network(one) - opened.network(one)).abs().max() <= 1e-4
        again = open_model(file, torch.device("cpu"))  # also for us
        assert (again.network(one) - opened.network(one)).abs().max() <= 1e-5


def test_a_network_that_is_not_theirs(run: Path, tmp_path: Path) -> None:
    opened = open_model(run, torch.device("cpu"))
    with pytest.raises(ConfigError, match="--names timm: resnet8_cifar: not a network of timm"):
        export(opened, "safetensors", tmp_path / "x", "timm")
    with pytest.raises(ConfigError, match="only for --format safetensors"):
        export(opened, "pt2", tmp_path / "x", "timm")
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_left_where_logits_differ(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = export_module.export_formats.make

    def damaged(*args: object, **options: object) -> object:
        right = made(*args, **options)  # type: ignore[arg-type]
        read = lambda path: lambda images: right.read(path)(images) + 0.001  # noqa: E731
        return export_module.export_formats.Made(right.content, read, right.free_size, [])

    monkeypatch.setattr(export_module.export_formats, "make", damaged)
    with pytest.raises(HvdtrainError, match=r"logits differ by 0\.001"):
        export(open_model(run, torch.device("cpu")), "safetensors", tmp_path / "net.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_a_network_that_computes_while_it_is_built(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As torchvision's RegNets, whose size is not known before."""
    make, file = MODELS["resnet8_cifar"], tmp_path / "net.safetensors"

    @functools.wraps(make)
    def computing(*args: object, **options: object) -> torch.nn.Module:
        assert torch.linspace(0, 1, 3).tolist() == [0, 0.5, 1]
        return make(*args, **options)

    monkeypatch.setitem(MODELS, "resnet8_cifar", computing)
    export(open_model(run, torch.device("cpu")), "safetensors", file)
    assert load(file).classes == ["cat", "dog"]


def test_files_that_are_no_exports(run: Path, tmp_path: Path) -> None:
    weights = next(run.glob("checkpoints/*/model.safetensors"))
    with pytest.raises(CheckpointError, match="no file of `hvdtrain export"):
        load(weights)
    file = tmp_path / "net.safetensors"
    export(open_model(run, torch.device("cpu")), "safetensors", file)
    whole = file.read_bytes()
    for old, new, told in (
        ('\\"image_size\\": 16', '\\"image_size\\": -6', "image_size"),
        ('\\"resnet8_cifar\\", ', '\\"nfnet_f5\\",      ', "a network of 374,"),  # 1.5 GB
    ):
        damaged = whole.replace(old.encode(), new.encode())
        assert damaged != whole
        file.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=told):
            load(file)
