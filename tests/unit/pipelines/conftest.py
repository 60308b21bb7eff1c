"""A small image folder on disk, a packed one, and loaders over them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from hvdtrain.config.data import Data
from pipelines.commands.pack import pack
from pipelines.loader import Loaders
from tests.unit.pipelines.pack_samples import TWO
from tests.unit.pipelines.samples import CLASSES, PER_CLASS, photograph


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`CLASSES` with `PER_CLASS` JPEG files each, all of different sizes."""
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for label, name in enumerate(CLASSES):
        (root / name).mkdir()
        for k in range(PER_CLASS):
            height, width = rng.integers(40, 120, 2).tolist()
            picture = photograph(100 * label + k, height, width)
            picture.save(root / name / f"{k}.JPEG", quality=95)
    return root


@pytest.fixture(scope="module")
def packed(folder, tmp_path_factory) -> Path:
    """`folder` with copies of 48 and 32 px."""
    path = tmp_path_factory.mktemp("packed") / "data"
    pack(str(folder), str(path), TWO)
    return path


MakeLoaders = Callable[..., Loaders]


@pytest.fixture
def make_loaders() -> Iterator[MakeLoaders]:
    """Loaders of one rank on the CPU, closed at the end of the test."""
    made: list[Loaders] = []

    def make(
        train: Path | None,
        val: Path | float | None = None,
        *,
        rank: int = 0,
        size: int = 1,
        **data: object,
    ) -> Loaders:
        paths = {
            "train": train and str(train),
            "val": str(val) if isinstance(val, Path | str) else val,
        }
        config = Data.model_validate({**paths, "decode_threads": 1, **data})
        device = torch.device("cpu")
        made.append(Loaders(config, seed=5, rank=rank, world_size=size, device=device))
        return made[-1]

    yield make
    for loaders in made:
        loaders.close()
