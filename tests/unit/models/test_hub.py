"""Weights from the hub: from a cache without a network, from a hub of this machine, and what is refused."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub import constants

from hvdtrain.config.load import parse_config
from hvdtrain.config.schema import Config
from hvdtrain.engine.weights_source import find_weights, start_from
from hvdtrain.errors import CheckpointError, ConfigError
from hvdtrain.models import MODELS, hub
from hvdtrain.models.options import apply_options
from hvdtrain.models.weights import load_weights
from tests.unit.models.hub_folder import (
    COMMIT,
    TIMM,
    TRANSFORMERS,
    Hub,
    files_of,
    put_in_cache,
    serving,
)
from tests.unit.models.plain_resnet import plain_logits, random_resnet, transformers_names
from tests.unit.models.test_nfnet_published import F0, SMALL, difference, published, small

NAME = "timm:resnet18.a1_in1k"
NUMBERS = [str(i) for i in range(1000)]


def config(weights: str, name: str = "resnet18", *settings: str) -> Config:
    text = f"model: {{name: {name}, weights: '{weights}'}}\nphases: [{{epochs: 1}}]"
    return parse_config(text, overrides=list(settings))


def small_files(**config: Any) -> dict[str, bytes]:
    """Of a repository whose weights are of no network."""
    return files_of({"x": torch.ones(3)}, {**TIMM, **config})


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty cache; nothing waits before it asks again."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(hub, "TRIES_AFTER_S", (0.0, 0.0))
    still = SimpleNamespace(sleep=lambda _s: None)
    monkeypatch.setattr("huggingface_hub.file_download.time", still)
    monkeypatch.setattr("huggingface_hub.utils._http.time", still)
    yield tmp_path / "hub"
    huggingface_hub.close_session()


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """No name is found, and no connection made."""

    def refused(*_: object, **_more: object) -> None:
        raise OSError(101, "Network is unreachable")

    for name in ("getaddrinfo", "create_connection"):
        monkeypatch.setattr(socket, name, refused)
    monkeypatch.setattr(socket.socket, "connect", refused)


@pytest.fixture
def served(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with serving() as found:
        template = f"{found.address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        for module in (constants, huggingface_hub.hf_api.constants):
            monkeypatch.setattr(module, "ENDPOINT", found.address)
        yield found


def refusal(weights: str, name: str = "resnet18") -> str:
    """The line by which weights are refused."""
    with pytest.raises((CheckpointError, ConfigError)) as refused:
        start_from(config(weights, name), MODELS["resnet18"](num_classes=10), NUMBERS[:10])
    line = str(refused.value)
    assert line.startswith(f"model.weights: {weights}: ")
    assert line.isprintable()
    assert len(line.replace(constants.HF_HUB_CACHE, "")) < 420, line
    return line.removeprefix(f"model.weights: {weights}: ")


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_the_same_logits_from_a_cache_without_a_network(
    name: str, cache: Path, no_network: None
) -> None:
    params, text = random_resnet(name), f"timm:{name}.a1_in1k"
    put_in_cache(cache, f"timm/{name}.a1_in1k", files_of(params, {**TIMM, "architecture": name}))
    model = MODELS[name]().eval()
    settings = ("phases.0.interpolation=bicubic", "data.val_crop_ratio=0.95")
    notes, origin = start_from(config(text, name, *settings), model, NUMBERS)
    images = torch.randn(2, 3, 65, 64, generator=torch.Generator().manual_seed(0))
    expected = plain_logits(name, params, images)
    with torch.no_grad():
        found = model(images).double()
    assert (found - expected).norm() < 1e-5 * expected.norm()
    sha256 = origin.pop("sha256")
    assert origin == {
        "source": text,
        "repository": f"timm/{name}.a1_in1k",
        "revision": COMMIT,
        "file": "model.safetensors",
    }
    assert f"revision {COMMIT}, sha256 {sha256[:12]}" in notes[0]
    assert "from the cache, perhaps not the newest, as the hub was not reached" in notes[1]
    assert "tensors loaded" in notes[2]
    assert len(notes) == 3, notes


def test_nfnet_by_deepminds_names(
    cache: Path, no_network: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    params = published(SMALL)
    put_in_cache(cache, "deepmind/small", files_of(params))
    source = find_weights(f"hf:deepmind/small@{COMMIT}", "model.weights")
    model = small()
    load_weights(model, source.path)
    for size in (64, 65):
        assert difference(model, params, size) < 1e-5
    assert len(source.notes()) == 1  # a commit is never older than the hub's


@pytest.mark.skipif(
    "HVDTRAIN_NFNET_F0" not in os.environ, reason="takes 20 s and 1.5 GB: set HVDTRAIN_NFNET_F0=1"
)
def test_nfnet_f0_by_deepminds_names(cache: Path, no_network: None) -> None:
    params, text = published(F0), "hf:deepmind/nfnet_f0"
    put_in_cache(cache, "deepmind/nfnet_f0", files_of(params, {"architecture": "dm_nfnet_f0"}))
    model = MODELS["nfnet_f0"]().eval()
    cfg = config(text, "nfnet_f0", "model.padding=same")
    apply_options(model, cfg.model)
    start_from(cfg, model, NUMBERS)
    for size in (64, 65):
        assert difference(model, params, size, F0) < 1e-5


def test_resnets_of_transformers_match_classes_by_name(cache: Path, no_network: None) -> None:
    params, text = random_resnet("resnet18", 3), "hf:microsoft/resnet-18"
    put_in_cache(cache, "microsoft/resnet-18", files_of(transformers_names(params), TRANSFORMERS))
    model = MODELS["resnet18"](num_classes=3).eval()
    notes, _ = start_from(config(text), model, ["ant", "bee", "cat"])
    assert any("the same classes in another order" in note for note in notes)
    images = torch.randn(2, 3, 64, 64)
    expected = plain_logits("resnet18", params, images)[:, [1, 2, 0]]
    with torch.no_grad():
        assert (model(images) - expected).norm() < 1e-5 * expected.norm()
    v1 = TRANSFORMERS | {"downsample_in_bottleneck": True}
    put_in_cache(cache, "a/v1", files_of({"x": torch.ones(1)}, v1))
    assert refusal("hf:a/v1").startswith("a ResNet of transformers that no network here equals")
    put_in_cache(cache, "a/vit", files_of({"x": torch.ones(1)}, {"model_type": "vit"}))
    assert "of the kind vit; of its networks only ResNets are taken" in refusal("hf:a/vit")


def test_a_head_of_another_size_and_other_preprocessing(cache: Path, no_network: None) -> None:
    about = {**TIMM, "pretrained_cfg": TIMM["pretrained_cfg"] | {"mean": [0.5, 0.5, 0.5]}}
    put_in_cache(cache, "timm/resnet18.a1_in1k", files_of(random_resnet("resnet18"), about))
    model = MODELS["resnet18"](num_classes=10)
    before = model.classifier.weight.clone()
    notes, _ = start_from(config(NAME), model, NUMBERS[:10])
    assert torch.equal(model.classifier.weight, before)
    assert any(n.endswith("the file has 512 → 1000, this model 512 → 10") for n in notes), notes
    assert notes[-1] == (
        f"{NAME}: warning: made for images that are prepared otherwise: set data.mean=[0.5,0.5,0.5] "
        "data.val_crop_ratio=0.95 phases.0.interpolation=bicubic"
    )


def test_what_a_cache_lacks(cache: Path, no_network: None, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "cannot be reached (ConnectError: " in refusal(NAME)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    line = refusal(NAME)
    assert line.startswith(f"HF_HUB_OFFLINE is set, and the cache {cache} has not all files of ")
    assert "hf download timm/resnet18.a1_in1k" in line
    folder = put_in_cache(cache, "timm/resnet18.a1_in1k", small_files(architecture="resnet101"))
    assert refusal(NAME) == (
        "weights of another network: they are of resnet101, and model.name is resnet18: set "
        "model.name=resnet101, or choose other weights"
    )
    file = (folder / "model.safetensors").resolve()
    file.write_bytes(file.read_bytes()[:-2])
    assert "model.safetensors is damaged in the cache, or cut off (its sha256" in refusal(NAME)
    (folder / "model.safetensors").unlink()
    evil = b"\x80\x04cposix\nsystem\n(S'touch /tmp/evil'\ntR."
    put_in_cache(cache, "a/pickle", {"pytorch_model.bin": evil})
    assert "torch.save" in refusal("hf:a/pickle")
    put_in_cache(cache, "a/config", {**files_of({"x": torch.ones(1)}), "config.json": b"[1"})
    assert "config.json of the repository is no JSON" in refusal("hf:a/config")


def test_a_hub_is_asked_and_its_answers_are_told(
    served: Hub, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert refusal(NAME).startswith(f"there is no {served.address}/timm/resnet18.a1_in1k, or it is")
    served.repositories["timm/resnet18.a1_in1k"] = small_files()
    assert refusal(f"{NAME}@v2").endswith("has no revision v2")
    for answer, text in (
        ((401, "GatedRepo"), "gated: accept its terms on "),
        ((403, "x"), "the hub answers 403 for timm/resnet18.a1_in1k: log in with"),
        ((503, "x"), "cannot be reached (it answers 503), and the cache"),
    ):
        served.refuse = answer
        assert text in refusal(NAME)
    served.refuse, served.sizes = None, {"model.safetensors": 2**36}
    assert "model.safetensors has 68,719,476,736 bytes or more, at most" in refusal(NAME)
    served.sizes, served.cut = {}, True
    assert "cannot be reached (RemoteProtocolError: peer closed" in refusal(NAME)
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 16)  # the first half arrives
    assert "the download of model.safetensors breaks off again and again" in refusal(NAME)
    served.cut = False
    served.repositories["a/flax"] = {"flax_model.msgpack": b"x", "README.md": b"x"}
    assert "it has flax_model.msgpack, README.md: download the one" in refusal("hf:a/flax")

    found = find_weights(NAME, "model.weights")
    assert found.fetched is not None
    assert (found.fetched.revision, found.fetched.from_cache) == (COMMIT, None)
    assert found.path.is_relative_to(cache)
    served.asked.clear()
    assert find_weights(f"{NAME}@{COMMIT}", "model.weights").path == found.path
    assert served.asked == []  # a commit that is in the cache
    served.refuse = (503, "x")
    again = find_weights(NAME, "model.weights").fetched
    assert again is not None
    assert again.from_cache == "it answers 503"


def test_forms_of_addresses() -> None:
    for text in ("timm:", "timm:a/b", "hf:name", "hf:a/b/c", "hf:https://x/y", "hf:a/b@../x"):
        with pytest.raises(ConfigError, match=r"model\.weights: expected timm:NAME\.TAG"):
            config(text)
    assert config("./hf:name").model.weights == "./hf:name"


def test_without_the_libraries(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ConfigError, match=r"timm:resnet18: without timm .* a tag must say which"):
        find_weights("timm:resnet18", "model.weights")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ConfigError, match=r"huggingface_hub cannot be imported .*the extra hub"):
        find_weights(NAME, "model.weights")
