"""NFNets with SAME padding and DeepMind's names against a transcription of nfnets/nfnet.py and base.py
(deepmind-research) in float64, with arrays in TensorFlow's order."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn import functional

from hvdtrain.config.load import parse_config
from hvdtrain.config.networks import as_made
from hvdtrain.config.schema import Model
from hvdtrain.engine.build import model_labels
from hvdtrain.engine.checkpoint_tensors import check_labels
from hvdtrain.errors import CheckpointError, ConfigError
from hvdtrain.models.nfnet import NFNET, NFNet, ScaledGELU, ScaledStdConv2d
from hvdtrain.models.options import apply_options
from hvdtrain.models.weights import load_weights
from tests.unit.models.model_samples import build

Params = dict[str, Tensor]


class Sizes(NamedTuple):
    """Of an NFNet."""

    widths: list[int]
    depths: list[int]
    stem: tuple[int, ...]
    group: int
    final: int
    classes: int


SMALL = Sizes([16, 32, 48, 48], [1, 2, 2, 1], (2, 4, 8, 8), 8, 96, 5)
F0 = Sizes([256, 512, 1536, 1536], [1, 2, 6, 3], (16, 32, 64, 128), 128, 3072, 1000)


def small(padding: str = "same") -> NFNet:
    """NFNet of other widths and depths, made of the same parts."""
    torch.manual_seed(0)
    stem, inputs = nn.Sequential(), 3
    for width, stride in zip(SMALL.stem, (2, 1, 1, 2), strict=True):
        stem += nn.Sequential(ScaledStdConv2d(inputs, width, 3, stride), ScaledGELU())
        inputs = width
    form = NFNET._replace(group_width=SMALL.group)
    sizes = (SMALL.widths, SMALL.depths, SMALL.final, SMALL.classes)
    model = NFNet(form, stem[:-1], inputs, *sizes, zero_gamma=True)
    apply_options(model, Model(name="nfnet", padding=padding))
    return model.eval()


def published(sizes: Sizes = SMALL) -> Params:
    """Random values of all parameters by DeepMind's names."""
    generator = torch.Generator().manual_seed(1)
    found: Params = {}

    def draw(name: str, *shape: int, around: float = 0.0, spread: float = 0.3) -> None:
        found[name] = around + spread * torch.randn(shape, generator=generator)

    def conv(name: str, kernel: int, inputs: int, outputs: int) -> None:
        draw(f"NFNet/~/{name}/w", kernel, kernel, inputs, outputs)
        draw(f"NFNet/~/{name}/gain", outputs, around=1.0)
        draw(f"NFNet/~/{name}/bias", outputs)

    def linear(name: str, inputs: int, outputs: int) -> None:
        draw(f"NFNet/~/{name}/w", inputs, outputs, spread=1 / math.sqrt(inputs))
        draw(f"NFNet/~/{name}/b", outputs)

    inputs, index = 3, 0
    for k, width in enumerate(sizes.stem):
        conv(f"stem_conv{k}", 3, inputs, width)
        inputs = width
    for width, depth in zip(sizes.widths, sizes.depths, strict=True):
        for position in range(depth):
            block = f"nf_block_{index}" if index else "nf_block"
            conv(f"{block}/~/conv0", 1, inputs, width // 2)
            conv(f"{block}/~/conv1", 3, sizes.group, width // 2)
            conv(f"{block}/~/conv1b", 3, sizes.group, width // 2)
            conv(f"{block}/~/conv2", 1, width // 2, width)
            if position == 0:
                conv(f"{block}/~/conv_shortcut", 1, inputs, width)
            linear(f"{block}/~/squeeze_excite/~/linear", width, width // 2)
            linear(f"{block}/~/squeeze_excite/~/linear_1", width // 2, width)
            draw(f"NFNet/~/{block}/skip_gain", around=0.8)
            inputs, index = width, index + 1
    conv("final_conv", 1, inputs, sizes.final)
    linear("linear", sizes.final, sizes.classes)
    return found


class Transcribed:
    """The forward pass on x [N, H, W, C], in float64."""

    def __init__(self, params: Params, sizes: Sizes) -> None:
        self.p = {name.removeprefix("NFNet/~/"): value.double() for name, value in params.items()}
        self.sizes = sizes

    @staticmethod
    def act(x: Tensor) -> Tensor:
        inner = math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)
        return 0.5 * x * (1 + torch.tanh(inner)) * 1.7015043497085571

    def conv(self, name: str, x: Tensor, stride: int = 1, groups: int = 1) -> Tensor:
        w, gain, bias = (self.p[f"{name}/{part}"] for part in ("w", "gain", "bias"))
        mean = w.mean((0, 1, 2), keepdim=True)
        var = w.var((0, 1, 2), correction=0, keepdim=True)
        scale = gain / torch.sqrt((var * w[..., 0].numel()).clamp(min=1e-4))
        w, k = (w - mean) * scale, w.shape[0]
        low, high = [], []
        for n in x.shape[1:3]:
            total = max((math.ceil(n / stride) - 1) * stride + k - n, 0)
            low.append(total // 2)
            high.append(total - total // 2)
        x = functional.pad(x.permute(0, 3, 1, 2), (low[1], high[1], low[0], high[0]))
        y = functional.conv2d(x, w.permute(3, 2, 0, 1), bias, stride, 0, 1, groups)
        return y.permute(0, 2, 3, 1)

    def linear(self, name: str, x: Tensor) -> Tensor:
        return x @ self.p[f"{name}/w"] + self.p[f"{name}/b"]

    @staticmethod
    def pool(x: Tensor) -> Tensor:
        """Means over 2 × 2; at an odd end over what is there."""
        rows = torch.stack([x[:, i : i + 2].mean(1) for i in range(0, x.shape[1], 2)], 1)
        return torch.stack([rows[:, :, i : i + 2].mean(2) for i in range(0, x.shape[2], 2)], 2)

    def block(self, name: str, x: Tensor, stride: int, beta: float, groups: int) -> Tensor:
        out, shortcut = self.act(x) * beta, x
        if f"{name}/~/conv_shortcut/w" in self.p:
            shortcut = self.conv(f"{name}/~/conv_shortcut", self.pool(out) if stride > 1 else out)
        out = self.conv(f"{name}/~/conv0", out)
        out = self.conv(f"{name}/~/conv1", self.act(out), stride, groups)
        out = self.conv(f"{name}/~/conv1b", self.act(out), 1, groups)
        out = self.conv(f"{name}/~/conv2", self.act(out))
        excite = self.linear(f"{name}/~/squeeze_excite/~/linear", out.mean((1, 2))).clamp(min=0)
        excite = torch.sigmoid(self.linear(f"{name}/~/squeeze_excite/~/linear_1", excite))
        out = excite[:, None, None] * 2 * out * self.p[f"{name}/skip_gain"]
        return out * 0.2 + shortcut

    def stages(self) -> Iterator[tuple[int, int]]:
        return zip(self.sizes.widths, self.sizes.depths, strict=True)

    def __call__(self, x: Tensor) -> Tensor:
        for k, stride in enumerate((2, 1, 1, 2)):
            x = self.conv(f"stem_conv{k}", self.act(x) if k else x, stride)
        index, std = 0, 1.0
        for stage, (width, depth) in enumerate(self.stages()):
            for position in range(depth):
                stride = 2 if stage and position == 0 else 1
                name = f"nf_block_{index}" if index else "nf_block"
                x = self.block(name, x, stride, 1 / std, width // 2 // self.sizes.group)
                std = math.sqrt((1.0 if position == 0 else std) ** 2 + 0.2**2)
                index += 1
        x = self.act(self.conv("final_conv", x)).mean((1, 2))
        return self.linear("linear", x)


def difference(model: nn.Module, params: Params, size: int, sizes: Sizes = SMALL) -> float:
    """The distance of the logits of 3 images from the transcription's, over the norm of these."""
    images = torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(size))
    expected = Transcribed(params, sizes)(images.double().permute(0, 2, 3, 1))
    with torch.no_grad():
        return float((model(images).double() - expected).norm() / expected.norm())


@pytest.mark.parametrize("names", ["haiku", "flattened"])
def test_published_weights_give_the_published_network(names: str, tmp_path: Path) -> None:
    params, file = published(), tmp_path / "w.safetensors"
    saved = {
        name.replace("/~/", ".").replace("/", ".") if names == "flattened" else name: value
        for name, value in params.items()
    }
    safetensors.torch.save_file({k: v.contiguous() for k, v in saved.items()}, file)
    model = small()
    notes = load_weights(model, file)
    assert not any("warning" in note for note in notes), notes
    for size in (64, 65, 96):
        assert difference(model, params, size) < 1e-5, size
    other = small("torch")
    assert any("trained with model.padding=same" in note for note in load_weights(other, file))
    assert difference(other, params, 65) < 1e-5  # where both paddings are the same
    assert difference(other, params, 64) > 0.01


@pytest.mark.skipif(
    "HVDTRAIN_NFNET_F0" not in os.environ, reason="takes 10 s and 1 GB: set HVDTRAIN_NFNET_F0=1"
)
def test_nfnet_f0(tmp_path: Path) -> None:
    params, file = published(F0), tmp_path / "w.safetensors"
    assert sum(value.numel() for value in params.values()) == 71_489_284
    assert len({name.rpartition("/")[0] for name in params}) == 94  # DeepMind's modules
    safetensors.torch.save_file(params, file)
    model = build("nfnet_f0", classes=1000, padding="same").eval()
    load_weights(model, file)
    for size in (64, 65):
        assert difference(model, params, size, F0) < 1e-5, size
    other = build("nfnet_f0", classes=1000).eval()
    other.load_state_dict(model.state_dict())
    assert difference(other, params, 64, F0) == pytest.approx(0.24, abs=0.02)


def test_timm_names(tmp_path: Path) -> None:
    """The same weights by the names and shapes of timm's dm_nfnet."""
    model, file = small(), tmp_path / "w.safetensors"
    for p in model.parameters():
        nn.init.normal_(p, 0.5)
    theirs = {}
    for name, tensor in model.state_dict().items():
        parts = name.split(".")
        if parts[0] == "stem":
            parts[:2] = ["stem", f"conv{int(parts[1]) // 2 + 1}"]
        renamed = ".".join(parts).replace("excite.reduce", "attn_last.fc1")
        renamed = renamed.replace("excite.expand", "attn_last.fc2").replace("skip_", "skipinit_")
        renamed = renamed.replace("shortcut", "downsample.conv").replace("classifier", "head.fc")
        renamed = f"final_conv{renamed[5:]}" if renamed.startswith("final.") else renamed
        flat = tensor.ndim == 2 and "attn_last" in renamed
        theirs[renamed] = tensor[..., None, None] if flat else tensor
        if renamed.endswith(".gain"):
            theirs[renamed] = tensor.view(-1, 1, 1, 1)
    safetensors.torch.save_file(theirs, file)
    loaded = small()
    load_weights(loaded, file)
    for (name, one), other in zip(
        loaded.state_dict().items(), model.state_dict().values(), strict=True
    ):
        assert torch.equal(one, other), name


def test_a_file_of_another_depth_or_a_pickle_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "w.safetensors"
    params = published() | {"NFNet/~/nf_block_6/~/conv0/bias": torch.zeros(24)}
    safetensors.torch.save_file(params, file)
    with pytest.raises(CheckpointError, match=r"stages\.4\.0\.conv1\.bias is not in this model"):
        load_weights(small(), file)
    pickled = tmp_path / "F0_haiku.npz"
    pickled.write_bytes(b"\x80\x04\x95rest")
    with pytest.raises(CheckpointError, match=r"as DeepMind's NFNets are: convert it"):
        load_weights(small(), pickled)


def test_padding_is_for_nfnets() -> None:
    for padding in ("same", "torch"):
        with torch.device("meta"):
            model = build("nfnet_f0", padding=padding)
        convs = [m for m in model.modules() if isinstance(m, ScaledStdConv2d)]
        assert {conv.same for conv in convs} == {padding == "same"}
    for name in ("nf_resnet26", "resnet8_cifar"):
        with (
            torch.device("meta"),
            pytest.raises(ConfigError, match=rf"^model\.padding: same .*, found {name}"),
        ):
            build(name, padding="same")


def test_a_checkpoint_from_before_is_refused() -> None:
    """Its weights fit, but were trained with the exact GELU."""
    cfg = parse_config("model: {name: nfnet_f0}\nphases: [{epochs: 1}]")
    labels = model_labels(cfg, SimpleNamespace(classes=["a", "b"]))  # type: ignore[arg-type]
    check_labels(Path("new"), {"labels": labels}, labels)
    before = {"labels": {"model": "nfnet_f0", "classes": 2}}
    with pytest.raises(CheckpointError, match=r"model is nfnet_f0, this run's is .* tanh-GELU"):
        check_labels(Path("old"), before, labels)
    assert as_made("nf_resnet50") == "nf_resnet50"
