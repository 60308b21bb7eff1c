"""What is outside of the site and links into the repository; mkdocs checks the links of the pages."""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml

from tests.launch import REPOSITORY
from tests.unit.docs.pages import PAGES

ROOMS = ("hvdtrain", "pipelines", "configs", "deploy", "benchmarks", "slurm", "tests")
TEXTS = [
    path
    for room in ROOMS
    for path in sorted((REPOSITORY / room).rglob("*"))
    if path.suffix in {".py", ".yaml", ".yml", ".md", ".sh", ".sbatch"}
]


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "slurm/README.md"])
def test_links_lead_to_files(name: str) -> None:
    page = REPOSITORY / name
    for target in re.findall(r"\]\(([^)#\s]+)", page.read_text()):
        assert "://" in target or (page.parent / target).exists(), target


def test_pages_named_in_the_code_exist() -> None:
    for path in TEXTS:
        for name in re.findall(r"(?<![\w/])docs/[\w/-]+\.(?:md|png)", path.read_text()):
            assert (REPOSITORY / name).exists(), f"{path}: {name}"


def test_tests_and_files_named_on_the_pages_exist() -> None:
    tests: dict[str, str] = {}
    for path in (REPOSITORY / "tests").rglob("*.py"):
        tests[path.name] = tests.get(path.name, "") + path.read_text()
    for page in PAGES:
        text = page.read_text()
        for file, name in re.findall(r"`(test_\w+\.py)::(test_\w+)`", text):
            assert f"def {name}(" in tests[file], f"{page}: {file}::{name}"
        rooms = "|".join((*ROOMS, "docs", "third_party"))
        for name in re.findall(rf"`((?:{rooms})/[\w./-]*\w)`", text):
            assert (REPOSITORY / name).exists() or name == "slurm/", f"{page}: {name}"


def test_the_four_parts_are_the_table_of_contents() -> None:
    """And each page is in the part whose folder it lies in; mkdocs demands that all are listed."""
    nav = yaml.safe_load((REPOSITORY / "mkdocs.yml").read_text())["nav"]
    parts = {name: _files(entries) for part in nav[1:] for name, entries in part.items()}
    folders = {"Tutorial": "tutorial", "How-to guides": "how-to", "Reference": "reference"}
    folders["Explanation"] = "explanation"
    assert list(parts) == list(folders)
    for name, files in parts.items():
        at_top = {"config.md", "metrics.md", "exit-codes.md"} if name == "Reference" else set()
        strangers = [f for f in files if not f.startswith(f"{folders[name]}/") and f not in at_top]
        assert not strangers, name


def _files(entry: Any) -> list[str]:
    if isinstance(entry, str):
        return [entry]
    children = entry.values() if isinstance(entry, dict) else entry
    return [file for child in children for file in _files(child)]
