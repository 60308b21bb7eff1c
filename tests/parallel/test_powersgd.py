"""PowerSGD on real ranks of both engines: the paper's gradients, equal weights, and exact resumes."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch

from hvdtrain.checkpoint_files import read_meta, verify
from tests.cut_runs import MIDDLE
from tests.launch import ENGINES, REPOSITORY, mpirun, run

WORKER = REPOSITORY / "tests/parallel/powersgd_worker.py"
# Group norm: images do not depend on their batch, so that the number of ranks changes only roundings.
CONFIG = """
name: power
data: {{train: {root}/train, augment: pad_crop, decode_threads: 1}}
model: {{name: resnet8_gn}}
lr: {{base: 0.05, base_batch: 4, warmup: none, schedule: cosine}}
phases: [{{epochs: 3, image_size: 16, batch_per_worker: 2}}]
train: {{log_every: 1, compare_every: 1}}
checkpoint: {{keep: 1000}}
comm: {{preflight: false, compression: powersgd, powersgd_rank: 2, group_mb: 0.05}}
metrics: {{enabled: false}}
"""
LAST = "e0003-s0000000000"


@pytest.fixture(scope="module", params=ENGINES)
def folder(
    request: pytest.FixtureRequest, small_root: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The runs of two ranks that one engine joins; then of one rank, and of two again."""
    folder = tmp_path_factory.mktemp(request.param)
    (folder / "c.yaml").write_text(CONFIG.format(root=small_root))
    for ranks, mode in ((2, "first"), (1, "other"), (2, "back")):
        launch = ENGINES[request.param] if ranks > 1 else mpirun
        command = launch(ranks, sys.executable, WORKER, folder, mode)
        done = run(command, cwd=folder, OMP_NUM_THREADS="1")
        assert done.returncode == 0, done.stdout + done.stderr
    return folder


def tensors(run_dir: Path, name: str, file: str) -> dict[str, torch.Tensor]:
    verify(run_dir / "checkpoints" / name)
    return safetensors.torch.load_file(run_dir / "checkpoints" / name / f"{file}.safetensors")


@pytest.mark.parametrize("name", ["steps", "resumed"])
def test_neither_checkpoints_nor_a_resume_change_a_bit(folder: Path, name: str) -> None:
    for file in ("model", "optimizer", "errors"):
        whole = tensors(folder / "whole", LAST, file)
        mine = tensors(folder / name, LAST, file)
        assert whole.keys() == mine.keys()
        for key, tensor in mine.items():
            assert torch.equal(tensor, whole[key]), (file, key)


def test_a_checkpoint_has_the_errors_of_every_rank(folder: Path) -> None:
    kept = tensors(folder / "steps", MIDDLE, "errors")
    errors = {key: error for key, error in kept.items() if key.endswith("/error")}
    assert len(errors) == len(kept) // 2 > 5
    weights = tensors(folder / "steps", MIDDLE, "model")
    for key, error in errors.items():
        shape = weights[key.removesuffix("/error")].shape
        assert error.shape == (2, *shape)
        assert kept[key.replace("/error", "/factor")].shape == (2, *shape[1:])
        assert error[0].any() or shape[0] > 2
        assert not torch.equal(error[0], error[1])


def test_other_ranks_keep_the_sum_of_errors(folder: Path) -> None:
    two = tensors(folder / "steps", MIDDLE, "errors")
    one = safetensors.torch.load_file(folder / "changed.safetensors")
    assert one.keys() == two.keys()
    for key, found in one.items():
        if key.endswith("/error"):
            torch.testing.assert_close(found[0], two[key].sum(0), rtol=1e-6, atol=1e-9)
        else:
            assert torch.equal(found, two[key])
    one = tensors(folder / "changed", "e0002-s0000000000", "errors")
    back = safetensors.torch.load_file(folder / "back.safetensors")
    for key, found in back.items():
        if key.endswith("/error"):
            assert torch.equal(found.sum(0), one[key][0])
            assert torch.equal(found[0], found[1])
        else:
            assert torch.equal(found, one[key])


def test_one_rank_and_two_train_alike(folder: Path) -> None:
    """All that differs is rounding, 3e-8; without the errors of the checkpoint it is 5e-3."""
    whole = tensors(folder / "whole", LAST, "model")
    for name in ("changed", "back"):
        other = tensors(folder / name, LAST, "model")
        apart = max(float((other[key] - whole[key]).abs().max()) for key in whole)
        assert apart < 1e-5, (name, apart)


def test_a_change_of_compression_is_shown(folder: Path) -> None:
    events = [json.loads(line) for line in (folder / "none/events.jsonl").read_text().splitlines()]
    starts = [event for event in events if event["kind"] == "start"]
    assert starts[-1]["changes"] == [
        {
            "setting": "comm.compression",
            "kind": "plan",
            "before": "powersgd",
            "after": "none",
        }
    ]
    notes = " ".join(event["text"] for event in events if event["kind"] == "note")
    assert "errors of PowerSGD for 9 tensors that are not compressed now are dropped" in notes
    assert "the gradient noise scale is not measured" in notes  # of the first attempt
    assert "errors.safetensors" not in read_meta(folder / "none/checkpoints" / LAST)["sha256"]
