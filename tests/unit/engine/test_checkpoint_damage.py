"""Every flipped bit, every other length and every deleted file of a checkpoint is found, in one line.

`HVDTRAIN_BIT_FLIPS=100000` flips that many bits, drawn by a seed (1000 without the variable).
"""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

import pytest
import torch
from torch import nn

from hvdtrain.checkpoint_files import BUFFERS_FILE, ERRORS_FILE, MODEL_FILE, list_checkpoints
from hvdtrain.checkpoint_keep import Keep
from hvdtrain.engine.checkpoint import RANKS, contents, metadata, write_checkpoint
from hvdtrain.engine.step import train_step
from hvdtrain.optim.ema import Ema
from hvdtrain.run.checkpoints import check, listing
from tests.step_samples import images, state_of

FLIPS = int(os.environ.get("HVDTRAIN_BIT_FLIPS", "1000"))
NAMES = [
    "buffers.safetensors",
    "ema.safetensors",
    "errors.safetensors",
    "meta.json",
    "model.safetensors",
    "optimizer.safetensors",
]


def written(root: Path, features: int = 4) -> Path:
    """A checkpoint with every kind of file."""
    torch.manual_seed(0)
    layers = [nn.AvgPool2d(8), nn.Conv2d(3, features, 1, bias=False), nn.BatchNorm2d(features)]
    state = state_of(nn.Sequential(*layers, nn.Flatten(), nn.Linear(features, 7)))
    state.ema = Ema(state.model, 0.9)
    train_step(state, images(6), 0.1, 0.9)
    files = contents(state) | {BUFFERS_FILE: {RANKS: torch.rand(2, 2 * features)}}
    files[ERRORS_FILE] = {"4.weight/error": torch.rand(2, 7, features)}
    # A number with an exponent and an escaped letter: both may be written in two ways.
    meta = metadata(state, {"model": "tiny"}, {"config": {"eps": 1e-20, "name": "é"}})
    return write_checkpoint(files, meta, root / "checkpoints", Keep(2)).path


@pytest.fixture
def path(tmp_path: Path) -> Iterator[Path]:
    path = written(tmp_path)
    assert sorted(file.name for file in path.iterdir()) == NAMES
    assert check(path).state == "ok"
    yield path
    assert check(path).state == "ok", "the test has not put back what it has spoilt"


def assert_found(path: Path, name: str, what: object) -> None:
    """By the check that a resumed run and `hvdtrain ckpt verify` make."""
    verdict = check(path)
    assert verdict.state == "damaged", (name, what)
    assert verdict.fault.startswith(f"{path / name}: "), (name, what, verdict)
    assert "\n" not in verdict.fault
    assert len(verdict.fault) < 2 * len(str(path)) + 200


def test_every_flipped_bit(path: Path) -> None:
    random = Random(0)
    originals = {name: (path / name).read_bytes() for name in NAMES}
    for number in range(FLIPS):
        name = NAMES[number % len(NAMES)]
        damaged = bytearray(originals[name])
        bit = random.randrange(8 * len(damaged))
        damaged[bit // 8] ^= 1 << bit % 8
        (path / name).write_bytes(damaged)
        assert_found(path, name, bit)
        (path / name).write_bytes(originals[name])


def test_every_byte_of_the_metadata(path: Path) -> None:
    """A letter in the other case may mean the same: 1E-20, \\u00E9."""
    file = path / "meta.json"
    original = file.read_bytes()
    random = Random(1)
    for place in range(len(original)):
        for bit in (5, random.randrange(8)):
            damaged = bytearray(original)
            damaged[place] ^= 1 << bit
            file.write_bytes(damaged)
            assert_found(path, file.name, (place, bit))
    [listed] = listing(path.parent.parent)
    assert listed.kind == "damaged"
    file.write_bytes(original)


def test_every_truncation(path: Path) -> None:
    for name in NAMES:
        file = path / name
        original = file.read_bytes()
        for length in range(len(original) - 1, -1, -1):
            os.truncate(file, length)
            assert_found(path, name, length)
        file.write_bytes(original)


def test_truncations_of_a_large_file(tmp_path: Path) -> None:
    path = written(tmp_path, features=30_000)
    file = path / MODEL_FILE
    size = file.stat().st_size
    assert size > 2**20
    header = 8 + int.from_bytes(file.read_bytes()[:8], "little")
    ends = (0, 8, header, 2**20, size)
    lengths = {end + step for end in ends for step in (-2, -1, 0, 1)} | set(
        Random(0).sample(range(size), 50)
    )
    for length in sorted((n for n in lengths if 0 <= n < size), reverse=True):
        os.truncate(file, length)
        assert_found(path, file.name, length)


SPOIL: dict[str, Callable[[bytes], bytes]] = {
    "a blank at the end": lambda data: data + b" ",
    "a line end": lambda data: data + b"\n",
    "a zero byte": lambda data: data + b"\0",
    "a blank at the start": lambda data: b" " + data,
    "a byte lost in the middle": lambda data: data[: len(data) // 2] + data[len(data) // 2 + 1 :],
    "zeros in place of the end": lambda data: data[:-64] + bytes(64),
    "twice": lambda data: data + data,
}


@pytest.mark.parametrize("what", SPOIL)
def test_bytes_too_many_or_lost(path: Path, what: str) -> None:
    for name in NAMES:
        original = (path / name).read_bytes()
        (path / name).write_bytes(SPOIL[what](original))
        assert_found(path, name, what)
        (path / name).write_bytes(original)


def test_every_deletion(path: Path, tmp_path: Path) -> None:
    """Of one file, of several, of all."""
    for count in range(1, len(NAMES) + 1):
        for gone in itertools.combinations(NAMES, count):
            whole = shutil.copytree(path, tmp_path / "whole")
            for name in gone:
                (path / name).unlink()
            first = "meta.json" if "meta.json" in gone else gone[0]
            assert_found(path, first, gone)
            assert list_checkpoints(path.parent) == [path]
            shutil.rmtree(path)
            whole.rename(path)


def swap(path: Path, one: str, two: str) -> None:
    (path / one).rename(path / "kept")
    (path / two).rename(path / one)
    (path / "kept").rename(path / two)


def test_files_in_each_others_place(path: Path) -> None:
    for one, two in itertools.combinations(NAMES, 2):
        swap(path, one, two)
        assert check(path).state == "damaged", (one, two)
        swap(path, one, two)
