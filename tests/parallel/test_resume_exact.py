"""A run stopped in its second phase continues with the next samples and the same pixels."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests.launch import REPOSITORY, mpirun, run, torchrun
from tests.parallel.resume_worker import BATCHES, DATA, STOPS

WORKER = REPOSITORY / "tests/parallel/resume_worker.py"
COUNT = 87
Record = tuple[int, int, int, float, int]


@pytest.fixture(scope="module")
def recorded(digits_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the records of 1, 2 and 4 ranks, of which torch.distributed joins the 4."""
    out, root = tmp_path_factory.mktemp("recorded"), tmp_path_factory.mktemp("images")
    for k, image in enumerate(sorted((digits_root / "train").rglob("*.jpg"))[:: 1430 // COUNT]):
        folder = root / str(k % 3)
        folder.mkdir(exist_ok=True)
        if k < COUNT:
            (folder / f"{k}.jpg").symlink_to(image)
    for ranks in BATCHES:
        launch = torchrun if ranks == 4 else mpirun
        done = run(launch(ranks, sys.executable, WORKER, root, out), cwd=out, OMP_NUM_THREADS="1")
        assert done.returncode == 0, done.stdout + done.stderr
    return out


def in_order(path: Path) -> list[list[tuple[int, int]]]:
    """(sample, checksum) of the samples with weight, by epoch, in the order of the permutation."""
    ranks: list[list[Record]] = [[tuple(r) for r in rank] for rank in json.loads(path.read_text())]
    assert len({len(rank) for rank in ranks}) == 1
    epochs: dict[int, list[tuple[int, int]]] = {}
    for records in zip(*ranks, strict=True):  # rank r has every world_size-th place
        assert len({record[:2] for record in records}) == 1
        for epoch, _step, sample, weight, checksum in records:
            found = epochs.setdefault(epoch, [])
            if weight:
                found.append((sample, checksum))
    return [epochs[epoch] for epoch in sorted(epochs)]


def test_an_uninterrupted_run_sees_each_image_once_an_epoch(recorded: Path) -> None:
    whole = in_order(recorded / "crops-whole.json")
    assert [sorted(sample for sample, _ in epoch) for epoch in whole] == [list(range(COUNT))] * 3
    assert whole[1] != whole[2]


def test_repeated_augmentation_sees_each_image_so_many_times_in_a_row(recorded: Path) -> None:
    """Twice in two epochs; the third has the first half of another order."""
    first, second, third = in_order(recorded / "cached-whole.json")
    assert len(first) == len(second) == len(third) == COUNT
    both = first + second
    assert [sample for sample, _ in both[0::2]] == [sample for sample, _ in both[1::2]]
    assert sorted(sample for sample, _ in both[0::2]) == list(range(COUNT))
    assert len({*both}) == 2 * COUNT  # no two copies have the same pixels
    assert [sample for sample, _ in third[0:86:2]] == [sample for sample, _ in third[1:86:2]]
    assert len({sample for sample, _ in third}) == 44
    assert [sample for sample, _ in third] != [sample for sample, _ in first]


@pytest.mark.parametrize("ranks", BATCHES)
@pytest.mark.parametrize("kind", DATA)
def test_a_resumed_run_gets_the_rest_of_the_whole_one(
    recorded: Path, kind: str, ranks: int
) -> None:
    whole = in_order(recorded / f"{kind}-whole.json")
    for stop in STOPS:
        consumed = stop * 2 * BATCHES[2][1]
        rest = in_order(recorded / f"{kind}-{stop}-{ranks}.json")
        assert rest == [whole[1][consumed:], whole[2]]
