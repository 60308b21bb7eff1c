"""A run with its images, for predictions, exports and pages."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hvdtrain.inference.description import Preprocessing
from tests.study_runs import made_run

CLASSES = ("cat", "dog")
SMALL = Preprocessing(
    image_size=32,
    crop_ratio=1,
    resize="crop",
    interpolation="bilinear",
    mean=[0.5] * 3,
    std=[0.25] * 3,
)


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root, random = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for split in ("train", "val"):
        for name in CLASSES:
            (root / split / name).mkdir(parents=True)
            for k in range(5):
                pixels = random.integers(0, 256, (30 + 7 * k, 50, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{k}.png")
    return root


@pytest.fixture(scope="session")
def run(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("runs") / "run"
    averaged = {"train.ema_decay": 0.9, "train.val_views": "mirror"}
    return made_run(root, images, classes=CLASSES, **averaged)
