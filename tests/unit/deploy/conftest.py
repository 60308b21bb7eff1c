"""A checkout before `make setup`."""

import shutil
from pathlib import Path

import pytest

import bootstrap
from tests.launch import REPOSITORY as ROOT


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder with only the files that `make setup` reads."""
    root = tmp_path / "checkout"
    for name in ("requirements", "deploy", "third_party"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    (root / "hvdtrain").mkdir()
    for name in bootstrap.PACKAGE_FILES:
        shutil.copy(ROOT / name, root / name)
    return root
