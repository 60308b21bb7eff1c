"""Images and configs that every kind of test uses."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines import digits


@pytest.fixture(scope="session")
def digits_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """scikit-learn's handwritten digits as JPEG files, `train/<digit>/`, `val/<digit>/`."""
    root = tmp_path_factory.mktemp("digits")
    digits.write(root)
    return root


@pytest.fixture(scope="session")
def small_root(digits_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eleven training and seven validation images of each of two digits."""
    root = tmp_path_factory.mktemp("small")
    for split, count in (("train", 11), ("val", 7)):
        for name in ("3", "8"):
            folder = root / split / name
            folder.mkdir(parents=True)
            for image in sorted((digits_root / split / name).iterdir())[:count]:
                (folder / image.name).write_bytes(image.read_bytes())
    return root
