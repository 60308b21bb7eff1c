"""Starting from the weights of a file: names, heads, mismatches, and a ResNet as an NF-ResNet."""

import json
import pickle
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import safetensors.torch
import torch
from torch import nn

from hvdtrain.comm.ranks import Solo
from hvdtrain.config.load import parse_config
from hvdtrain.config.schema import Model
from hvdtrain.engine.build import whiten
from hvdtrain.engine.progress import Progress
from hvdtrain.errors import CheckpointError
from hvdtrain.models import MODELS
from hvdtrain.models.convert import Moments, resnet_to_nf
from hvdtrain.models.nfnet import nf_resnet
from hvdtrain.models.resnet import Bottleneck, ResNet
from hvdtrain.models.weights import load_weights, read_tensors
from hvdtrain.train import train


def randomise(model: nn.Module, seed: int = 1) -> nn.Module:
    """Give the norms statistics, scales and shifts like those of a trained network; in evaluation."""
    generator = torch.Generator().manual_seed(seed)
    for norm in (m for m in model.modules() if isinstance(m, nn.BatchNorm2d)):
        for tensor, low, high in (
            (norm.running_mean, -0.3, 0.3),
            (norm.running_var, 0.5, 1.5),
            (norm.weight.data, 0.5, 1.5),
            (norm.bias.data, -0.3, 0.3),
        ):
            tensor.copy_(torch.rand(tensor.shape, generator=generator) * (high - low) + low)
    return model.eval()


def torchvision_names(model: nn.Module) -> dict[str, torch.Tensor]:
    """The state of our ResNet by torchvision's names, written out by hand for stem and head."""
    first = {
        "stem.0.weight": "conv1.weight",
        "stem.1.": "bn1.",
        "classifier.": "fc.",
        ".norm": ".bn",
        ".shortcut.": ".downsample.",
        "stages.0.": "layer1.",
        "stages.1.": "layer2.",
        "stages.2.": "layer3.",
        "stages.3.": "layer4.",
    }
    renamed = {}
    for name, tensor in model.state_dict().items():
        for ours, theirs in first.items():
            name = name.replace(ours, theirs)  # noqa: PLW2901
        renamed[name] = tensor
    return renamed


@pytest.mark.parametrize("kind", ["pt", "safetensors"])
def test_the_same_network_from_either_kind_of_file(kind: str, tmp_path: Path) -> None:
    file = tmp_path / f"w.{kind}"
    source = randomise(MODELS["resnet20_cifar"]())
    tensors = source.state_dict()
    counters = sum(name.endswith("num_batches_tracked") for name in tensors)
    if kind == "pt":
        torch.save({"state_dict": {f"module.{k}": v for k, v in tensors.items()}, "epoch": 3}, file)
    else:
        safetensors.torch.save_file(tensors, file)
    model = MODELS["resnet20_cifar"]().eval()
    assert load_weights(model, file) == [f"{file}: {len(tensors) - counters} tensors loaded"]
    images = torch.randn(2, 3, 16, 16)
    assert torch.equal(model(images), source(images))


def test_torchvisions_resnet_with_other_classes(tmp_path: Path) -> None:
    torch.manual_seed(0)
    source = randomise(MODELS["resnet18"](num_classes=1000))
    tensors = torchvision_names(source)
    # Names as torchvision 0.28 has them.
    assert {"conv1.weight", "bn1.running_var", "layer2.0.downsample.1.bias"} <= tensors.keys()
    assert {"layer4.1.bn2.weight", "fc.bias"} <= tensors.keys()
    torch.save(tensors, tmp_path / "resnet18.pth")
    model = MODELS["resnet18"](num_classes=7).eval()
    head = model.classifier.weight.clone()
    notes = load_weights(model, tmp_path / "resnet18.pth")
    assert notes[1].endswith(
        "classifier keeps its starting weights: the file has 512 → 1000, this model 512 → 7"
    )
    assert torch.equal(model.classifier.weight, head)
    images = torch.randn(2, 3, 32, 32)
    model.classifier = source.classifier
    assert torch.equal(model(images), source(images))


def test_what_does_not_fit_is_named_and_nothing_is_changed(tmp_path: Path) -> None:
    file = tmp_path / "w.pt"
    torch.save(MODELS["resnet34"](num_classes=10).state_dict(), file)
    model = MODELS["resnet18"](num_classes=10)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(CheckpointError) as raised:
        load_weights(model, file)
    text = str(raised.value)
    assert text.startswith(f"model.weights: {file}: made by another model: stages.0.2.conv1.weight")
    assert re.search(r"; and \d+ more$", text)
    assert "\n" not in text
    tensors = {**before, "stem.0.weight": torch.zeros(64, 4, 7, 7)}
    del tensors["stem.1.bias"]
    torch.save(tensors, file)
    with pytest.raises(
        CheckpointError,
        match=r"stem\.0\.weight is \[64, 4, 7, 7\], this model's is \[64, 3, 7, 7\]; "
        r"stem\.1\.bias is missing$",
    ):
        load_weights(model, file)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


class _Evil:
    def __reduce__(self):
        return (print, ("run",))


def test_files_without_weights_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "evil.pt").write_bytes(pickle.dumps({"a": _Evil()}, protocol=2))
    torch.save({"a": _Evil()}, tmp_path / "evil2.pt")
    (tmp_path / "text.pt").write_text("hello")
    (tmp_path / "text.safetensors").write_text("hello")
    (tmp_path / "empty.pt").write_bytes(b"")
    torch.save([1, 2], tmp_path / "list.pt")
    for name in ("evil.pt", "evil2.pt", "text.pt", "text.safetensors", "empty.pt", "list.pt"):
        with pytest.raises(CheckpointError, match=rf"^model\.weights: .*{name}: [^\n]+$"):
            read_tensors(tmp_path / name)
    with pytest.raises(CheckpointError, match=r"none\.pt: No such file"):
        read_tensors(tmp_path / "none.pt")
    assert capsys.readouterr().out == ""


def test_a_resnet_of_projections_and_zero_mean_kernels_is_converted_exactly() -> None:
    torch.manual_seed(0)
    source = randomise(ResNet(Bottleneck, [1, 1, 1, 1], 10, zero_gamma=False))
    for module in source.modules():
        if isinstance(module, nn.Conv2d):
            module.weight.data -= module.weight.data.mean((1, 2, 3), keepdim=True)
    model = nf_resnet([1, 1, 1, 1], 10, zero_gamma=True).eval()
    model.load_state_dict(resnet_to_nf(source.state_dict(), [1, 1, 1, 1]))
    images = torch.randn(4, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(model(images), source(images), rtol=1e-3, atol=1e-3)


def test_the_mean_behind_a_relu_is_that_of_samples() -> None:
    generator = torch.Generator().manual_seed(0)
    mean, var = torch.tensor([0.5, -1.0, 0.0]), torch.tensor([1.0, 4.0, 0.25])
    z = torch.randn(200_000, 3, generator=generator, dtype=torch.float64) * var.sqrt() + mean
    expected = z.relu().mean(0).sum().item()
    assert Moments(mean, var).relu_sum().item() == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize(
    ("depths", "zero_mean", "largest"),
    # Measured 0.26, 1.06 and 1.37; without a bias for the dropped means the last two are 2.4, 3.0.
    [([3, 4, 6, 3], True, 0.4), ([1, 1, 1, 1], False, 1.3), ([3, 4, 6, 3], False, 1.7)],
    ids=["inner ReLUs", "kernel means", "both"],
)
def test_what_conversion_loses(depths: list[int], zero_mean: bool, largest: float) -> None:
    """Relative distance of the logits, with branches a tenth as large as their shortcuts."""
    torch.manual_seed(0)
    source = ResNet(Bottleneck, depths, 100, zero_gamma=False)
    for m in source.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.momentum = None  # the plain mean over the batches that follow
        elif isinstance(m, nn.Conv2d) and zero_mean:
            m.weight.data -= m.weight.data.mean((1, 2, 3), keepdim=True)
        elif isinstance(m, Bottleneck):
            m.norm3.weight.data.fill_(0.1)
    images = torch.randn(16, 3, 64, 64)
    model = nf_resnet(depths, 100, zero_gamma=True).eval()
    with torch.no_grad():
        source.train()(images)
        model.load_state_dict(resnet_to_nf(source.eval().state_dict(), depths))
        expected = source(images)
        assert (model(images) - expected).norm() / expected.norm() < largest


def test_a_resnet50_file_starts_an_nf_resnet50(tmp_path: Path) -> None:
    source = randomise(MODELS["resnet50"](num_classes=1000))
    file = tmp_path / "resnet50.pt"
    torch.save(torchvision_names(source), file)
    model = MODELS["nf_resnet50"](num_classes=10)
    notes = load_weights(model, file)
    assert "fine-tune it" in notes[1]
    assert "classifier keeps its starting weights" in notes[2]
    gains = [p.item() for n, p in model.named_parameters() if n.endswith("skip_gain")]
    assert gains == pytest.approx([5.0] * 16)
    kernel = source.stages[2][1].conv2.weight[7].detach().double()
    kernel = (kernel - kernel.mean()) / kernel.std(correction=0) / kernel.numel() ** 0.5
    found = model.stages[2][1].conv2.weight[7].detach().double()
    torch.testing.assert_close(found, kernel, rtol=1e-4, atol=1e-6)


def test_conversion_needs_the_same_depths(tmp_path: Path) -> None:
    file = tmp_path / "w.pt"
    for name, target in (("resnet50", "nf_resnet101"), ("resnet50", "nf_resnet26")):
        torch.save(MODELS[name](num_classes=10).state_dict(), file)
        with pytest.raises(
            CheckpointError, match="a ResNet that is not of this NF-ResNet's depths"
        ):
            load_weights(MODELS[target](num_classes=10), file)


def test_a_run_starts_from_a_file_and_keeps_what_is_frozen(
    small_root: Path, tmp_path: Path
) -> None:
    torch.manual_seed(5)
    source = MODELS["resnet8_cifar"](num_classes=1000)
    torch.save(source.state_dict(), tmp_path / "w.pt")
    cfg = parse_config(
        f"model: {{name: resnet8_cifar, weights: {tmp_path / 'w.pt'}, freeze: [stem, stages.1]}}\n"
        f"data: {{train: {small_root / 'train'}, val: {small_root / 'val'}}}\n"
        "phases: [{epochs: 1, image_size: 16, batch_per_worker: 8}]\nmetrics: {enabled: false}\n"
    )
    train(cfg, Solo(), run_dir=tmp_path / "run")
    notes = [
        json.loads(line).get("text", "")
        for line in (tmp_path / "run/events.jsonl").read_text().splitlines()
    ]
    assert any(note.endswith("the file has 64 → 1000, this model 64 → 2") for note in notes)
    (newest,) = (tmp_path / "run/checkpoints").glob("e*")
    trained = read_tensors(newest / "model.safetensors")
    for name, tensor in source.state_dict().items():
        if name.startswith(("stem", "stages.1.")):
            assert torch.equal(trained[name], tensor)
    assert not torch.equal(trained["stages.2.0.conv1.weight"], source.stages[2][0].conv1.weight)


def test_a_run_whitens_by_its_first_batch_and_only_then() -> None:
    images = torch.randn(9, 3, 8, 8)
    expected = MODELS["airbench94"]()
    expected.whiten(images)
    for step, weights, whitened in ((0, None, True), (1, None, False), (0, "w.pt", False)):
        model = MODELS["airbench94"]()
        before = model.whitening.weight.clone()
        cfg = SimpleNamespace(model=Model(name="airbench94", weights=weights))
        state = SimpleNamespace(model=model, progress=Progress(step=step), comm=Solo())
        whiten(state, cfg, images)
        expected_weight = expected.whitening.weight if whitened else before
        assert torch.equal(model.whitening.weight, expected_weight)
