"""A checkout in which set-up has not run."""

import shutil
from pathlib import Path

import pytest

from tests.launch import REPOSITORY as ROOT


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder with the files that set-up reads and nothing else."""
    root = tmp_path / "checkout"
    for name in ("requirements", "deploy", "third_party"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "setup.py", root)
    return root
