"""Weights files as people have them are loaded, and what was chosen or left out is said."""

from __future__ import annotations

import argparse
import pathlib
from collections import OrderedDict, defaultdict
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from hvdtrain.engine.checkpoint import save_checkpoint
from hvdtrain.errors import CheckpointError
from hvdtrain.models import MODELS
from hvdtrain.models.weights import load_weights
from tests.step_samples import state_of
from tests.unit.models.made_weights import (
    HEAD,
    Tensors,
    Write,
    arrays,
    equal,
    fresh,
    in_shards,
    other,
    put,
    trained,
    under,
)


@pytest.fixture(scope="module")
def source() -> nn.Module:
    return trained()


def in_the_middle(tensors: Tensors) -> Tensors:
    return {name.replace("stages.1.", "stages.1._orig_mod."): t for name, t in tensors.items()}


def in_folder(name: str) -> Write:
    def write(path: Path, tensors: Tensors) -> None:
        path.mkdir()
        if name.endswith(".json"):
            in_shards(path / name, tensors)
        elif name.endswith(".bin"):
            torch.save(tensors, path / name)
        else:
            safetensors.torch.save_file(tensors, path / name)

    return write


TAKEN: dict[str, Write] = {
    "plain": put(dict),
    "plain, old format": put(dict, _use_new_zipfile_serialization=False),
    "OrderedDict": put(OrderedDict),
    "parameters": put(lambda t: {k: nn.Parameter(v, v.is_floating_point()) for k, v in t.items()}),
    "DDP": put(lambda t: under("module.", t)),
    "compiled": put(lambda t: under("_orig_mod.", t)),
    "compiled DDP": put(lambda t: under("_orig_mod.module.", t)),
    "DDP of compiled": put(lambda t: under("module._orig_mod.", t)),
    "a compiled part": put(in_the_middle),
    "Lightning": put(
        lambda t: {
            "epoch": 3,
            "pytorch-lightning_version": "2.4",
            "state_dict": {**under("model.", t), "loss.weight": torch.ones(10)},
            "callbacks": {},
            "hyper_parameters": {"lr": 0.1, "cfg": argparse.Namespace(a=1)},
        }
    ),
    "Lightning, compiled": put(lambda t: {"state_dict": under("model._orig_mod.", t)}),
    "Composer": put(
        lambda t: {"state": {"model": under("module.", t), "run_name": "x"}, "rng": []}
    ),
    "timm": put(
        lambda t: {"epoch": 1, "arch": "x", "args": argparse.Namespace(lr=1), "state_dict": t}
    ),
    "timm, averaged": put(lambda t: {"state_dict": other(t), "state_dict_ema": t}),
    "torchvision, averaged": put(
        lambda t: {
            "model": other(t),
            "model_ema": {"n_averaged": torch.tensor(5), **under("module.", t)},
            "args": argparse.Namespace(),
        }
    ),
    "averages as a list": put(lambda t: {"ema": {"shadow_params": [*t.values()]}, "model": t}),
    "imagenet example": put(
        lambda t: {"state_dict": under("module.", t), "best_acc1": torch.tensor(0.5)}
    ),
    "DeepSpeed": put(lambda t: {"module": under("module.", t), "ds_config": {}}),
    "mmpretrain": put(lambda t: {"meta": {}, "state_dict": under("backbone.", t)}),
    "nested four deep": put(lambda t: {"state": {"app": {"model": {"state_dict": t}}}}),
    "a name of one's own": put(lambda t: under("my.net.", t)),
    "with numbers beside": put(lambda t: {**t, "epoch": 3, 7: "x"}),
    "NumPy arrays": put(arrays),
    "NumPy arrays in a model": put(lambda t: {"model": arrays(t), "best": np.float64(0.1)}),
    "NumPy by columns": put(lambda t: {k: np.asfortranarray(v) for k, v in arrays(t).items()}),
    "NumPy, doubles": put(lambda t: {k: v.astype(np.float64) for k, v in arrays(t).items()}),
    "paths beside": put(lambda t: {"model": t, "dir": pathlib.PurePosixPath("x").name}),
    "a defaultdict beside": put(lambda t: {"model": t, "log": defaultdict(list)}),
    "bfloat16 kept exactly": put(lambda t: {k: v.double() for k, v in t.items()}),
    "safetensors": lambda p, t: safetensors.torch.save_file(t, p),
    "safetensors, DDP": lambda p, t: safetensors.torch.save_file(under("module.", t), p),
    "safetensors, compiled": lambda p, t: safetensors.torch.save_file(under("_orig_mod.", t), p),
    "safetensors, Composer": lambda p, t: safetensors.torch.save_file(
        under("state.model.module.", t), p
    ),
    "index of shards": in_shards,
    "Hugging Face": in_folder("model.safetensors"),
    "Hugging Face, shards": in_folder("model.safetensors.index.json"),
    "Hugging Face, torch": in_folder("pytorch_model.bin"),
}


@pytest.mark.parametrize("kind", TAKEN)
@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
def test_taken(kind: str, name: str, source: nn.Module, tmp_path: Path) -> None:
    """By its content: what the name ends with does not matter."""
    path, tensors = tmp_path / name, source.state_dict()
    TAKEN[kind](path, tensors)
    model = fresh()
    notes = load_weights(model, path)
    assert equal(model, tensors)
    assert notes[0].startswith(f"{path}: ")
    assert all("\n" not in note and len(note) < 300 for note in notes)


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
@pytest.mark.parametrize("prefix", ["", "module.", "model._orig_mod."])
def test_another_classifier_is_one_note(
    prefix: str, name: str, source: nn.Module, tmp_path: Path
) -> None:
    path, tensors = tmp_path / name, source.state_dict()
    torch.save(under(prefix, tensors), path)
    model = fresh(classes=3)
    notes = load_weights(model, path)
    assert notes[1:] == [
        f"{path}: classifier keeps its starting weights: the file has 64 → 10, this model 64 → 3"
    ]
    assert equal(model, {k: v for k, v in tensors.items() if k not in HEAD})


def test_a_classifier_that_is_not_taken_may_be_broken(source: nn.Module, tmp_path: Path) -> None:
    tensors = source.state_dict()
    torch.save({**tensors, HEAD[0]: tensors[HEAD[0]] * float("nan")}, tmp_path / "w.pth")
    load_weights(fresh(classes=3), tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match=r"classifier\.weight has 640 of 640 values"):
        load_weights(fresh(), tmp_path / "w.pth")


def test_notes_say_what_was_chosen_and_left_out(source: nn.Module, tmp_path: Path) -> None:
    path, tensors = tmp_path / "w.pth", source.state_dict()
    torch.save({"state_dict": other(tensors), "state_dict_ema": tensors}, path)
    assert load_weights(fresh(), path)[1:] == [
        f"{path}: these are its averaged weights, state_dict_ema"
    ]
    torch.save({**under("model.", tensors), "loss.scale": torch.ones(1), "epoch": 3}, path)
    assert load_weights(fresh(), path)[1:] == [
        f"{path}: left out as no tensors: epoch",
        f"{path}: left out as outside 'model.': loss.scale",
    ]  # fmt: skip


def test_one_shard_of_several_says_so(source: nn.Module, tmp_path: Path) -> None:
    in_shards(tmp_path / "model.safetensors.index.json", source.state_dict())
    with pytest.raises(CheckpointError, match=r"one part of several: name their \.index\.json"):
        load_weights(fresh(), tmp_path / "model-00001-of-00002.safetensors")


def test_a_prefix_before_a_resnets_names_of_other_libraries(tmp_path: Path) -> None:
    source = MODELS["resnet18"](num_classes=10)
    theirs = {}
    for name, tensor in source.state_dict().items():
        new = name.replace("stem.0", "conv1").replace("stem.1", "bn1").replace(".norm", ".bn")
        new = new.replace("shortcut", "downsample").replace("classifier", "fc")
        for k in range(4):
            new = new.replace(f"stages.{k}.", f"layer{k + 1}.")
        theirs[new] = tensor
    for prefix in ("module.", "model._orig_mod.", "backbone."):
        torch.save({"state_dict": under(prefix, theirs)}, tmp_path / "w.pth")
        model = fresh("resnet18")
        load_weights(model, tmp_path / "w.pth")
        assert equal(model, source.state_dict())


def test_a_checkpoint_or_run_folder_stands_for_its_weights(
    source: nn.Module, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    path = save_checkpoint(state_of(source), run / "checkpoints", 2, {"classes": 10})
    for given in (run, path, path / "model.safetensors"):
        model = fresh()
        load_weights(model, given)
        assert equal(model, source.state_dict())
    data = bytearray((path / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (path / "model.safetensors").write_bytes(data)
    with pytest.raises(CheckpointError, match="damaged: sha256"):
        load_weights(fresh(), run)
