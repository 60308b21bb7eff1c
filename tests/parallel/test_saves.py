"""Checkpoints in mid-epoch, by steps and by time, change nothing of what is trained, and a run that
goes on from one ends with the same weights and batch-norm statistics, on real ranks."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch

from hvdtrain.checkpoint_files import list_checkpoints, read_meta, verify
from hvdtrain.models import MODELS
from tests.cut_runs import MIDDLE
from tests.launch import REPOSITORY, mpirun, run
from tests.parallel.saves_worker import RUNS

WORKER = REPOSITORY / "tests/parallel/saves_worker.py"
CONFIG = """
name: saves
data: {{train: {root}/train, augment: pad_crop, decode_threads: 1}}
model: {{name: resnet8_cifar}}
lr: {{base: 0.05, warmup: none, schedule: cosine}}
phases: [{{epochs: 3, image_size: 16, batch_per_worker: 2}}]
train: {{ema_decay: 0.9}}
checkpoint: {{keep: 1000}}
comm: {{preflight: false}}
metrics: {{enabled: false}}
"""
EVERY_EPOCH = ["e0001-s0000000000", "e0002-s0000000000", "e0003-s0000000000"]


@pytest.fixture(scope="module")
def folder(small_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saves")
    (folder / "c.yaml").write_text(CONFIG.format(root=small_root))
    done = run(mpirun(2, sys.executable, WORKER, folder), cwd=folder, OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def names(run_dir: Path) -> list[str]:
    return sorted(path.name for path in list_checkpoints(run_dir / "checkpoints"))


def test_when_checkpoints_are_written(folder: Path) -> None:
    assert names(folder / "whole") == EVERY_EPOCH
    # After steps 4, 8, 12 (the end of the second epoch) and 16.
    middle = ["e0000-s0000000016", MIDDLE, "e0002-s0000000016"]
    assert names(folder / "steps") == sorted(EVERY_EPOCH + middle)
    found = names(folder / "time")
    assert {*EVERY_EPOCH} < {*found}
    assert {
        name[:5] for name in found if not name.endswith("s0000000000")
    }  # as many as it could write
    for path in list_checkpoints(folder / "time/checkpoints"):
        verify(path)


def test_every_checkpoint_is_reported_with_its_step(folder: Path) -> None:
    for name in RUNS:
        lines = map(json.loads, (folder / name / "events.jsonl").read_text().splitlines())
        events = [event for event in lines if event["kind"] == "checkpoint"]
        assert sorted(Path(event["path"]).name for event in events) == names(folder / name)
        for event in events:
            meta = read_meta(Path(event["path"]))
            assert event["step"] == meta["step"]
            files = Path(event["path"]).iterdir()
            assert event["bytes"] == sum(file.stat().st_size for file in files)


@pytest.mark.parametrize("name", ["steps", "time", "resumed"])
def test_the_end_is_the_same_to_the_bit(folder: Path, name: str) -> None:
    for file in ("model", "optimizer", "ema", "buffers"):
        whole, mine = (
            safetensors.torch.load_file(
                folder / run_name / "checkpoints/e0003-s0000000000" / f"{file}.safetensors"
            )
            for run_name in ("whole", name)
        )
        assert whole.keys() == mine.keys()
        for key, tensor in mine.items():
            assert torch.equal(tensor, whole[key]), (file, key)
    summaries = [json.loads((folder / n / "summary.json").read_text()) for n in ("whole", name)]
    for key in ("steps", "samples", "noise_scale"):
        assert summaries[0][key] == summaries[1][key], key


def test_the_statistics_of_the_ranks_differ(folder: Path) -> None:
    """Otherwise the test above would show nothing."""
    path = folder / "steps/checkpoints" / MIDDLE
    [one, two] = safetensors.torch.load_file(path / "buffers.safetensors")["ranks"]
    assert not torch.equal(one, two)
    model = safetensors.torch.load_file(path / "model.safetensors")
    ema = safetensors.torch.load_file(path / "ema.safetensors")
    at = 0
    for part in (model, ema):
        for key in [
            key
            for key in MODELS["resnet8_cifar"](num_classes=2).state_dict()
            if key.endswith(("_mean", "_var"))
        ]:
            size = part[key].numel()
            mine, theirs = one[at : at + size], two[at : at + size]
            pooled, at = (mine + theirs) / 2, at + size
            if key.endswith("_mean"):
                means = mine, theirs
            else:  # the variance of both ranks' images together
                pooled += ((means[0] - means[1]) / 2).square()
            torch.testing.assert_close(part[key], pooled)
    assert at == len(one)
