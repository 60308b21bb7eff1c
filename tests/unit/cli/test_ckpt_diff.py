"""`hvdtrain ckpt diff`: what differs between two checkpoints, to the bit."""

from __future__ import annotations

import json
from pathlib import Path

import safetensors.torch
import torch

from hvdtrain.checkpoint_keep import Keep
from hvdtrain.engine.checkpoint import contents, metadata, write_checkpoint
from tests.step_samples import network, state_of
from tests.unit.cli.ckpt_runs import LABELS, MIDDLE, NEWEST, Typed, flip, one_line, save


def test_diff_of_equal_checkpoints(run: Path, tmp_path: Path, ckpt: Typed) -> None:
    code, out, err = ckpt("diff", run, run / "checkpoints" / NEWEST)
    assert (code, err) == (0, "")
    assert out.splitlines()[-1] == "equal"
    assert "model.safetensors: all 9 tensors are equal" in out
    for root in ("a", "b"):  # the same training, at another speed and after other checkpoints
        state = state_of(network(norm=True))
        if root == "b":
            save(tmp_path / root, state, 0)
        save(tmp_path / root, state, 1)
    code, out, _ = ckpt("diff", tmp_path / "a", tmp_path / "b")
    assert code == 0
    assert "not counted: number 1 → 2\n" in out


def test_diff_names_settings_and_tensors(run: Path, ckpt: Typed) -> None:
    folder = run / "checkpoints"
    code, out, err = ckpt("diff", folder / MIDDLE, folder / NEWEST, "--json")
    assert (code, err) == (1, "")
    found = json.loads(out)
    assert not found["equal"]
    settings = {one["key"]: (one["a"], one["b"]) for one in found["settings"]}
    assert settings["position.epoch"] == (2, 3)
    assert settings["config.lr.base"] == (0.1, 0.2)
    assert settings["config.phases.1"] == (None, {"epochs": 1})
    assert "number" not in settings
    files = [folder / each / "model.safetensors" for each in (MIDDLE, NEWEST)]
    a, b = map(safetensors.torch.load_file, files)
    shown = {one["name"]: one for one in found["files"]["model.safetensors"]["differing"]}
    assert set(shown) == {name for name in a if not torch.equal(a[name], b[name])}
    for name, one in shown.items():
        apart = a[name].double() - b[name].double()
        assert one["largest"] == apart.abs().max().item()
        assert one["elements"] == int((apart != 0).sum())
    code, out, _ = ckpt("diff", folder / MIDDLE, folder / NEWEST)
    assert code == 1
    assert "  config.lr.base 0.1 → 0.2\n" in out
    largest = max(one["largest"] for one in shown.values() if not one["counts"])
    counts = f"{len(shown)} of {len(a)} tensors differ, largest difference {largest:.6g} ("
    assert f"model.safetensors: {counts}" in out
    assert "), largest difference of counts 1 (1.num_batches_tracked)\n" in out
    assert out.endswith("different\n")


def with_weights(folder: Path, weights: dict[str, torch.Tensor]) -> Path:
    """A checkpoint with these in place of the weights."""
    state = state_of(network(norm=True))
    files = {**contents(state), "model.safetensors": weights}
    return write_checkpoint(files, metadata(state, LABELS), folder, Keep(9)).path


def test_diff_of_other_names_types_shapes_and_values(tmp_path: Path, ckpt: Typed) -> None:
    one = {
        "same": torch.ones(3),
        "shape": torch.ones(2, 3),
        "type": torch.tensor([1.0, 2.0]),
        "sign": torch.tensor([0.0, 1.0]),
        "count": torch.tensor(2**60),
        "gone": torch.ones(1),
        "nan": torch.tensor([float("nan"), 1.0]),
        "empty": torch.ones(0),
        "half": torch.tensor([1.0, 4.0]).bfloat16(),
    }
    two = {
        "same": torch.ones(3),
        "shape": torch.ones(3, 2),
        "type": torch.tensor([1.0, 2.5]).half(),
        "sign": torch.tensor([-0.0, 1.0]),
        "count": torch.tensor(2**60 + 1),
        "new": torch.ones(1),
        "empty": torch.ones(0),
        "nan": torch.tensor([float("nan"), 3.0]),
        "half": torch.tensor([1.0, 5.0]).bfloat16(),
    }
    a, b = with_weights(tmp_path / "a", one), with_weights(tmp_path / "b", two)
    code, out, _ = ckpt("diff", a, b, "--json")
    assert code == 1
    found = json.loads(out)["files"]["model.safetensors"]
    assert (found["only_a"], found["only_b"]) == (["gone"], ["new"])
    assert {form["key"]: (form["a"], form["b"]) for form in found["forms"]} == {
        "shape": ("F32 [2, 3]", "F32 [3, 2]"),
        "type": ("F32 [2]", "F16 [2]"),
    }
    assert {each["name"]: (each["elements"], each["largest"]) for each in found["differing"]} == {
        "count": (1, 1.0),
        "half": (1, 1.0),
        "nan": (1, 2.0),
        "sign": (1, 0.0),
        "type": (1, 0.5),
    }
    two["nan"][1] = float("inf")
    code, out, _ = ckpt("diff", a, with_weights(tmp_path / "c", two))
    assert code == 1
    assert "5 of 8 tensors differ, largest difference not finite (nan)" in out
    assert "  only in A: gone\n" in out


def test_diff_refuses_a_damaged_one(run: Path, ckpt: Typed) -> None:
    folder = run / "checkpoints"
    flip(folder / MIDDLE / "model.safetensors")
    one_line(4, ckpt("diff", folder / NEWEST, folder / MIDDLE), "model.safetensors: damaged")
