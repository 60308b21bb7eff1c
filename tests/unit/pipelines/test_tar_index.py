"""The index saved next to tar shards says what their headers say, or is refused."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from hvdtrain.cli.main import app
from hvdtrain.errors import DataError
from pipelines.commands.stage import stage
from pipelines.sources import open_source, tar_index
from pipelines.sources.tar import write_index
from tests.unit.pipelines.tar_samples import contents, make, sample


def indexed(path: Path) -> str:
    """The name of the index that the command wrote for `path`."""
    result = CliRunner().invoke(app, ["data", "index", str(path), "--json"])
    assert result.exit_code == 0, result.output
    return Path(json.loads(result.stdout)["index"]).name


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["dog", "cat", "eel"], False),
        (["dog", "cat", "eel"], True),
        ([2, 0, 1], False),
        ([2, 0, 1], True),
        ([2, "cat", 1], True),
    ],
)
def test_an_index_says_the_same_as_the_headers(tmp_path, monkeypatch, words, named):
    for k in range(3):
        files = [f for j in range(4) for f in sample(f"é{k}-{j}", words[(j + k) % 3], b"x" * j)]
        make(tmp_path / f"{k}.tar", *files)
    if named:
        (tmp_path / "classes.txt").write_text("0\n1\n2\ncat\ndog\neel\n")
    plain = open_source(str(tmp_path), "data.train")
    assert indexed(tmp_path) == ".hvdtrain-index.npz"
    monkeypatch.setattr(tar_index, "read_headers", None)  # the headers are not read again
    quick = open_source(str(tmp_path), "data.train")
    assert quick.fingerprint == plain.fingerprint
    assert contents(quick) == contents(plain)
    assert [quick.name(i) for i in range(12)] == [plain.name(i) for i in range(12)]
    assert quick.shard_starts.tolist() == plain.shard_starts.tolist() == [0, 4, 8]


def test_a_pattern_has_its_own_index(tmp_path):
    for k in range(3):
        make(tmp_path / f"s-{k}.tar", *sample(str(k), k))
    assert indexed(tmp_path / "s-{0..1}.tar") == ".s-{0..1}.tar.hvdtrain-index.npz"
    assert indexed(tmp_path) == ".hvdtrain-index.npz"
    assert len(open_source(str(tmp_path / "s-{0..1}.tar"), "data.train")) == 2
    assert len(open_source(str(tmp_path), "data.train")) == 3


@pytest.mark.parametrize("change", ["length", "time", "another shard", "renamed"])
def test_an_index_of_other_shards_is_refused_until_it_is_made_again(tmp_path, change):
    path = make(tmp_path / "1.tar", *sample("1", 0))
    file = tmp_path / indexed(tmp_path)
    if change == "length":
        state = path.stat()
        make(path, *sample("1", 0), *sample("2", 1))
        path.write_bytes(path.read_bytes() * 2)
        os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    elif change == "time":
        os.utime(path, (1, 1))
    elif change == "another shard":
        make(tmp_path / "2.tar", *sample("2", 1))
    else:
        path.rename(tmp_path / "2.tar")
    with pytest.raises(DataError) as error:
        open_source(str(tmp_path), "data.train")
    assert str(error.value) == (
        f"data.train: {tmp_path}: other shards than when {file} was written; "
        "run hvdtrain data index again, or delete it"
    )
    indexed(tmp_path)
    assert len(open_source(str(tmp_path), "data.train")) >= 1


@pytest.mark.parametrize("content", [b"", b"nothing of the kind", "cut", "newer", "array"])
def test_a_damaged_index_is_reported(tmp_path, content):
    make(tmp_path / "1.tar", *sample("1", 0))
    file = tmp_path / indexed(tmp_path)
    if content == "newer":
        np.savez(file, format=np.array(9))
    elif content == "array":
        with file.open("wb") as stream:
            np.save(stream, np.arange(3))
    else:
        file.write_bytes(file.read_bytes()[:-300] if content == "cut" else content)
    with pytest.raises(DataError) as error:
        open_source(str(tmp_path), "data.train")
    message = str(error.value)
    assert message.startswith(f"data.train: {tmp_path}: {file}: ")
    assert message.endswith("run hvdtrain data index again, or delete it")


def test_what_needs_no_index(tmp_path):
    with pytest.raises(DataError, match="not tar shards; other datasets need no index"):
        write_index(str(tmp_path))
    with pytest.raises(DataError, match="nowhere: no such file or folder; expected tar shards"):
        write_index(str(tmp_path / "nowhere"))


def test_an_index_is_staged_with_its_shards(tmp_path):
    shards = tmp_path / "shards"
    shards.mkdir()
    os.utime(make(shards / "1.tar", *sample("1", 0)), (1, 1))
    indexed(shards)
    for _ in range(2):
        stage(str(shards), str(tmp_path / "local"))
        assert len(open_source(str(tmp_path / "local"), "data.train")) == 1
        os.utime(tmp_path / "local/1.tar")  # right, but with another time
