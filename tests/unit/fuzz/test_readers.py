"""Every reader takes a damaged file, or refuses it in one line: never a traceback, nor without end.

`make fuzz` draws more inputs, other ones each time; see CONTRIBUTING.md.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given

from tests.unit.fuzz.mutations import CHANGES, Change, fuzzed, read_or_refused
from tests.unit.fuzz.reader import Reader
from tests.unit.fuzz.seeds import readers

NAMES = (
    *("config", "overrides", "hosts", "hostfile", "slurm job", "slurm task", "calibration", "measured"),
    *("list.csv", "quoted.csv", "list.tsv", "list.txt", "labels.csv", "tar", "classes.txt"),
    *("tar index", "in tar index", "manifest", "in manifest"),
    *("dataset.json", "packed index", "in packed index"),
    *("meta.json", "in meta.json", "checkpoint", "checkpoint header", "weights header"),
    *("weights.pth", "in weights.pth", "config.json of timm", "config.json of transformers"),
    *("events.jsonl", "environment.json", "config.yaml of a run", "summary.json"),
    *("in meta.json of a run", "bad_samples.jsonl", "tuning.json", "dataset.npz", "in dataset.npz"),
    *("study.json", "events.jsonl of a member", "events.jsonl for its noise scale"),
    *("images.csv", "images.txt", "exported header", "in exported metadata", "staged record"),
    *("events.jsonl, compared", "config.yaml, compared", "environment.json, compared"),
)  # fmt: skip


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Reader]:
    return readers(tmp_path_factory.mktemp("fuzz"))


def test_valid_files_are_read(known: dict[str, Reader]) -> None:
    assert sorted(known) == sorted(NAMES)
    for name, reader in known.items():
        reader.read()  # raises nothing
        assert reader.file.stat().st_size, name


@pytest.mark.parametrize("name", NAMES)
def test_a_damaged_file_is_read_or_refused(known: dict[str, Reader], name: str) -> None:
    reader = known[name]
    valid = reader.file.read_bytes()

    @fuzzed
    @given(CHANGES)
    def holds(changes: list[Change]) -> None:
        replace(reader.file, reader.mutate(valid, changes))
        read_or_refused(reader.read)

    try:
        holds()
    finally:
        replace(reader.file, valid)


def replace(file: Path, content: bytes) -> None:
    """Write a new file; the time of the old one is no reason to take its content from a cache."""
    file.unlink(missing_ok=True)
    file.write_bytes(content)
