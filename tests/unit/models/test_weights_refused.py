"""Files that are no weights, or not this model's: refused in one short line of our own."""

from __future__ import annotations

import gzip
import json
import os
import pickle
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from hvdtrain.errors import CheckpointError
from hvdtrain.models import MODELS
from hvdtrain.models.weights import load_weights
from tests.unit.models.made_weights import (
    Tensors,
    Write,
    arrays,
    equal,
    fresh,
    old_save,
    other,
    put,
    trained,
    under,
)


@pytest.fixture(scope="module")
def source() -> nn.Module:
    return trained()


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return (os.system, ("touch PWNED",))


def cut(path: Path, tensors: Tensors, save: Callable[..., object], share: float) -> None:
    save(tensors, path)
    os.truncate(path, int(path.stat().st_size * share))


def text(content: str | bytes) -> Write:
    data = content.encode() if isinstance(content, str) else content
    return lambda path, _: path.write_bytes(data)


def zipped(*names: str) -> Write:
    def write(path: Path, _: Tensors) -> None:
        with zipfile.ZipFile(path, "w") as archive:
            for name in names:
                archive.writestr(name, b"x")

    return write


def tarred(path: Path, tensors: Tensors) -> None:
    torch.save(tensors, path.with_suffix(".in"))
    with tarfile.open(path, "w") as archive:
        archive.add(path.with_suffix(".in"), "w.pth")


def renamed_npz(path: Path, values: dict[str, np.ndarray]) -> None:
    np.savez(path.with_suffix(".npz"), **values)
    path.with_suffix(".npz").rename(path)


def flipped(path: Path, tensors: Tensors) -> None:
    torch.save(tensors, path)
    data = bytearray(path.read_bytes())
    data[data.index(b"data.pkl") + 120] ^= 0xFF
    path.write_bytes(data)


def in_itself(_: Tensors) -> dict[str, Any]:
    content: dict[str, Any] = {}
    content["model"] = content
    return content


def changed(tensors: Tensors, name: str, value: Any) -> Tensors:
    return {**tensors, name: value}


def spoiled(name: str, value: float) -> Callable[[Tensors], Tensors]:
    def spoil(tensors: Tensors) -> Tensors:
        new = tensors[name].clone()
        new.view(-1)[3] = value
        return changed(tensors, name, new)

    return spoil


def index(weight_map: object) -> Write:
    return text(json.dumps({"weight_map": weight_map}))


STEM = "stem.0.weight"
HUGE = (2**62).to_bytes(8, "little")
REFUSED: dict[str, tuple[Write, str]] = {
    "empty": (text(""), "an empty file"),
    "zeros": (text(bytes(5000)), "begins with zeros"),
    "some text": (text("hello world"), "neither a safetensors file nor one of torch.save"),
    "random bytes": (text(bytes(range(200, 255)) * 9), "neither a safetensors file nor"),
    "lfs pointer": (
        text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n"),
        "git lfs pull",
    ),
    "web page": (text("\n<!DOCTYPE html><html><body>Log in"), "a web page, not weights"),
    "xml": (text('<?xml version="1.0"?><Error><Code>AccessDenied'), "a web page, not weights"),
    "json": (text('{"error": "not found"}'), "neither weights nor an index of them"),
    "deep json": (text("[" * 100_000), "neither weights nor an index of them"),
    "gzip": (text(gzip.compress(b"x" * 100)), "unpack it first"),
    "tar": (tarred, "a tar archive"),
    "hdf5": (text(b"\x89HDF\r\n\x1a\n" + bytes(99)), "an HDF5 file"),
    "an image": (text(b"\xff\xd8\xff\xe0" + bytes(99)), "an image, not weights"),
    "npz": (lambda p, t: renamed_npz(p, arrays(t)), "NumPy arrays (.npz)"),
    "npy": (lambda p, t: p.write_bytes(b"\x93NUMPY\x01\0" + bytes(99)), "a single NumPy array"),
    "zip": (zipped("a/w.pth", "readme"), "none of torch.save: unpack it; it has a/w.pth"),
    "empty zip": (zipped(), "it has nothing"),
    "zip of no torch": (zipped("config.json", "metadata.json"), "it has config.json"),
    "TorchScript": (zipped("x/data.pkl", "x/constants.pkl"), "a TorchScript program"),
    "zip with a bad pickle": (zipped("x/data.pkl", "x/version"), "damaged or cut off"),
    "cut zip": (lambda p, t: cut(p, t, torch.save, 0.6), "a zip without its end"),
    "cut old file": (lambda p, t: cut(p, t, old_save, 0.6), "damaged or cut off"),
    "cut in its first part": (lambda p, t: cut(p, t, old_save, 0.01), "damaged or cut off"),
    "cut safetensors": (
        lambda p, t: cut(p, t, safetensors.torch.save_file, 0.6),
        "damaged or cut off",
    ),
    "cut header": (lambda p, t: cut(p, t, safetensors.torch.save_file, 0.001), "cut off: a header"),
    "flipped byte": (flipped, "damaged or cut off"),
    "huge header": (text(HUGE + b'{"a":1}'), "neither a safetensors file nor"),
    "bad header": (text((9).to_bytes(8, "little") + b'{"a": no}' + bytes(9)), "damaged or cut off"),
    "deep header": (
        text((90_000).to_bytes(8, "little") + b'{"a":' * 18_000),
        "damaged or cut off",
    ),
    "code": (put(lambda t: {"model": t, "x": Evil()}), "needs code (posix.system)|needs code"),
    "code in an old file": (
        put(lambda t: {"model": t, "x": Evil()}, _use_new_zipfile_serialization=False),
        "save the weights alone with torch.save",
    ),
    "a whole model": (
        put(lambda t: nn.Sequential(nn.Linear(2, 2))),
        "needs code (torch.nn.modules.container.Sequential)",
    ),
    "another protocol": (put(dict, pickle_protocol=4), "torch.save does not write by itself"),
    "plain pickle": (
        lambda p, t: p.write_bytes(pickle.dumps({"model": arrays(t)}, protocol=4)),
        "torch.save does not write by itself",
    ),
    "a list": (put(lambda t: [*t.values()]), "found a list"),
    "a tensor": (put(lambda t: t[STEM]), "found a single tensor"),
    "a number": (put(lambda t: 3), "found a value of another kind (int)"),
    "empty dictionary": (put(lambda t: {}), "found an empty one"),
    "integer keys": (put(lambda t: dict(enumerate(t.values()))), "under the keys 0, 1, 2, 3 and"),
    "bytes as keys": (put(lambda t: {k.encode(): v for k, v in t.items()}), "tensors under the key"),
    "an optimizer": (
        put(lambda t: torch.optim.SGD([nn.Parameter(v) for v in t.values() if v.is_floating_point()])
            .state_dict()),
        "found one with state, param_groups",
    ),
    "only settings": (put(lambda t: {"epoch": 3, "arch": "x"}), "found one with epoch, arch"),
    "in itself": (
        put(in_itself),
        "none of them weights by name",
    ),
    "text arrays": (put(lambda t: {"a": np.array(["x"])}), "none of them weights by name"),
    "object arrays": (put(lambda t: {"a": np.array([None])}), "none of them weights by name"),
    "NaN": (put(spoiled(STEM, float("nan"))), f"{STEM} has 1 of 432 values that are not finite"),
    "infinite": (put(spoiled("stem.1.running_var", float("inf"))), "stem.1.running_var has 1 of 16"),
    "NaN in NumPy": (
        put(lambda t: arrays(spoiled(STEM, float("nan"))(t))),
        f"{STEM} has 1 of 432 values that are not finite",
    ),
    "too large for float32": (
        put(lambda t: changed(t, STEM, t[STEM].double() * 1e300)),
        "432 of 432 values that are not finite",
    ),
    "int8": (put(lambda t: changed(t, STEM, t[STEM].to(torch.int8))), f"{STEM} is int8"),
    "complex": (put(lambda t: changed(t, STEM, t[STEM] + 0j)), f"{STEM} is complex64"),
    "sparse": (put(lambda t: changed(t, STEM, t[STEM].to_sparse())), f"{STEM} is sparse_coo"),
    "no storage": (put(lambda t: changed(t, STEM, t[STEM].to("meta"))), f"{STEM} is float32"),
    "renamed layers": (
        put(lambda t: {k.replace("conv2", "second"): v for k, v in t.items()}),
        "stages.0.0.conv2.weight is missing; stages.0.0.second.weight is not in this model",
    ),
    "a part": (
        put(lambda t: {k: v for k, v in t.items() if "stages.2" not in k}),
        "made by another model: stages.2.0.conv1.weight is missing",
    ),
    "another network": (
        put(lambda t: MODELS["vgg_small"](num_classes=10).state_dict()),
        "this model",
    ),
    "nothing fits": (put(lambda t: {"a": torch.ones(1)}), "nothing in it fits this model: it has a;"),
    "student and teacher": (
        put(lambda t: {**under("student.", t), **under("teacher.", other(t))}),
        "holds two such models, under 'student.' and 'teacher.'",
    ),
    "twice": (put(lambda t: {**t, **under("_orig_mod.", other(t))}), "twice"),
    "index of nothing": (index({"a": "none.safetensors"}), "none.safetensors, which it names: No such"),
    "index of a parent's file": (index({"a": "../w.safetensors"}), "expected names of files beside it"),
    "index of /dev/zero": (index({"a": "/dev/zero"}), "expected names of files beside it"),
    "index of its folder": (index({"a": ".."}), "expected names of files beside it"),
    "index of numbers": (index({"a": 1}), "expected names of files beside it"),
    "index of an index": (index({"a": "w.index.json"}), "names another index"),
    "index of a list": (index([1]), "neither weights nor an index"),
    "a folder": (lambda p, t: (p.mkdir(), (p / "a.pth").touch()), "name a weights file; it has a.pth"),
    "an empty folder": (lambda p, t: p.mkdir(), "there are none in it"),
    "parts of torch.distributed": (
        lambda p, t: (p.mkdir(), (p / ".metadata").touch()),
        "dcp_to_torch",
    ),
    "a pipe": (lambda p, t: os.mkfifo(p), "not a regular file"),
    "a link to /dev/zero": (lambda p, t: p.symlink_to("/dev/zero"), "not a regular file"),
    "nowhere": (lambda p, t: None, "No such file or directory"),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
def test_refused(
    kind: str, name: str, source: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write, message = REFUSED[kind]
    path = tmp_path / name
    write(path, source.state_dict())
    model = fresh()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(CheckpointError) as raised:
        load_weights(model, path)
    line = str(raised.value)
    assert any(part in line for part in message.split("|")), line
    assert line.startswith(f"model.weights: {path}: ")
    assert "\n" not in line
    assert len(line.removeprefix(f"model.weights: {path}: ")) < 320, line
    assert not any(word in line for word in ("weights_only", "safe_globals", "Traceback"))
    assert equal(model, before)
    assert not (tmp_path / "PWNED").exists()


def test_no_mutation_of_a_file_is_a_traceback(source: nn.Module, tmp_path: Path) -> None:
    """Bytes changed at random: loaded, or refused in one line."""
    generator = np.random.default_rng(0)
    path = tmp_path / "w"
    for save in (torch.save, old_save, safetensors.torch.save_file):
        save({"module.a": torch.ones(3)}, path)
        original = path.read_bytes()
        for _ in range(150):
            data = bytearray(original)
            for place in generator.integers(0, min(len(data), 700), generator.integers(1, 4)):
                data[place] = generator.integers(0, 256)
            path.write_bytes(data)
            with pytest.raises(CheckpointError) as raised:
                load_weights(fresh(), path)
            assert "\n" not in str(raised.value)
            assert "weights_only" not in str(raised.value)
