"""The same global batch gives the same training on 1, 2 and 4 ranks."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import safetensors.torch

from tests.launch import REPOSITORY, mpirun, run
from tests.parallel.equality_worker import VARIANTS

WORKER = REPOSITORY / "tests/parallel/equality_worker.py"


@pytest.fixture(scope="module")
def results(digits_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Losses and weights of every variant on 1, 2 and 4 ranks."""
    out = tmp_path_factory.mktemp("equality")
    root = tmp_path_factory.mktemp("images")
    # 117 images: 8 steps of 16 an epoch; the last is short, so padding is tested, too.
    for split in ("train", "val"):
        for name in "0123456789":
            folder = root / split / name
            folder.mkdir(parents=True)
            count = 12 if name < "7" else 11
            for image in sorted((digits_root / split / name).iterdir())[:count]:
                (folder / image.name).symlink_to(image)
    for ranks in (1, 2, 4):
        done = run(mpirun(ranks, sys.executable, WORKER, root, out), cwd=out, OMP_NUM_THREADS="1")
        assert done.returncode == 0, done.stdout + done.stderr
    return out


@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("variant", VARIANTS)
def test_ranks_train_like_one(results: Path, variant: str, ranks: int) -> None:
    one = json.loads((results / f"{variant}-1.json").read_text())
    many = json.loads((results / f"{variant}-{ranks}.json").read_text())
    assert len(one["losses"]) >= 20
    assert many["losses"] == pytest.approx(one["losses"], abs=1e-5)
    assert many["val_loss"] == pytest.approx(one["val_loss"], abs=1e-5)
    assert many["top1"] == one["top1"]
    expected = safetensors.torch.load_file(results / f"{variant}-1.safetensors")
    found = safetensors.torch.load_file(results / f"{variant}-{ranks}.safetensors")
    assert expected.keys() == found.keys()
    worst = max(float((expected[k] - found[k]).abs().max()) for k in expected)
    assert worst <= 1e-5


def test_variants_that_should_agree_and_differ(results: Path) -> None:
    losses = {
        name: json.loads((results / f"{name}-2.json").read_text())["losses"] for name in VARIANTS
    }
    assert losses["channels_last"] == pytest.approx(losses["plain"], abs=1e-4)
    assert losses["accumulate"] == pytest.approx(losses["plain"], abs=1e-4)
    # The clipped run must differ from the unclipped one, or clipping was not tested.
    assert losses["clip"] != pytest.approx(losses["accumulate"], abs=1e-3)
