"""A checkout that set-up has not touched."""

import shutil
from pathlib import Path

import pytest

import bootstrap
from tests.launch import REPOSITORY as ROOT


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder with what set-up reads, and nothing made yet."""
    root = tmp_path / "checkout"
    for name in ("requirements", "deploy", "third_party"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    (root / "hvdtrain").mkdir()
    for name in bootstrap.PACKAGE_FILES:
        shutil.copy(ROOT / name, root / name)
    return root
