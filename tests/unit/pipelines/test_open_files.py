"""More files than may be open are read all the same; too few descriptors are never bad images."""

from __future__ import annotations

import gc
import os
import resource
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from hvdtrain.errors import DataError, ResourceError
from pipelines.sources import base, open_source
from pipelines.sources.open_files import OpenFiles
from pipelines.sources.shards import ShardReader
from tests.unit.pipelines import open_files_worker
from tests.unit.pipelines.tar_samples import make, sample

SHARDS = 150


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    for k in range(SHARDS):
        make(folder / f"{k:03d}.tar", *sample(f"{k:03d}", k % 5))
    return folder


def read_all(folder: Path, limit: int, busy: int = 0) -> list[str]:
    worker = [sys.executable, open_files_worker.__file__, str(folder), str(limit), str(busy)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    done = subprocess.run(worker, capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.mark.parametrize("limit", [40, 64, 100, 1024])
def test_the_longest_unused_are_closed_within_the_hard_limit(shards, limit):
    images, most, _busy = map(int, read_all(shards, limit))
    assert images == 5 * SHARDS
    assert most < limit


def test_descriptors_that_others_take_are_given_up(shards):
    assert read_all(shards, 100, busy=45)[0] == str(5 * SHARDS)


def test_too_few_are_one_line_at_the_start(shards):
    text = " ".join(read_all(shards, 14))
    assert text.startswith("ResourceError this process may open 14 files, ")
    assert text.endswith("are open already: raise the limit, for example ulimit -n 4096")


def test_a_file_in_use_is_not_closed(tmp_path, monkeypatch):
    files = OpenFiles()
    for k in range(4):
        (tmp_path / str(k)).write_bytes(b"%d" % k)
    files._limit = 2
    first = files.acquire((0, 0), str(tmp_path / "0"))
    for k in (1, 2, 3):
        files.acquire((0, k), str(tmp_path / str(k)))
        files.release((0, k))
    assert os.pread(first, 1, 0) == b"0"
    assert files.acquire((0, 0), "is not opened again") == first
    assert len(files._files) <= 2
    files.forget(0)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(first)


def test_threads_that_open_one_file_at_once_share_it(shards):
    reader = ShardReader([str(path) for path in sorted(shards.iterdir())])
    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(lambda k: reader.read(k % 3, 512, 3).tobytes(), range(300)))
    assert found == [b"%03d" % (k % 3) for k in range(300)]


def test_a_reader_that_is_gone_leaves_no_descriptors(shards):
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    source = open_source(str(shards), "data.train")
    assert len(os.listdir("/proc/self/fd")) > before  # noqa: PTH208
    del source
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) <= before  # noqa: PTH208


def test_a_reader_that_is_collected_while_the_lock_is_held_is_closed_later(tmp_path):
    """The garbage collector may run in the thread that holds the lock."""
    files = OpenFiles()
    (tmp_path / "a").write_bytes(b"a")
    first = files.acquire((0, 0), str(tmp_path / "a"))
    files.release((0, 0))
    with files._lock:
        files.forget(0)
    os.fstat(first)
    second = files.acquire((1, 0), str(tmp_path / "a"))
    assert list(files._files) == [(1, 0)]
    assert not files._states.keys() - {(1, 0)}
    os.fstat(second)
    files.forget(1)
    assert not files._files


@pytest.mark.parametrize("change", ["length", "time"])
def test_a_shard_that_changed_before_it_was_opened_again_is_named(tmp_path, change):
    path = make(tmp_path / "s.tar", *sample("a", 0))
    files = OpenFiles()
    files._limit = 0
    files.acquire((0, 0), str(path))
    files.release((0, 0))
    files.acquire((0, 1), os.devnull)  # closes the other
    if change == "length":
        path.write_bytes(path.read_bytes() * 2)
    else:
        os.utime(path, (1, 1))
    with pytest.raises(DataError, match=r"s\.tar: changed while it was in use: 10,240 bytes"):
        files.acquire((0, 0), str(path))
    files.release((0, 1))
    files.forget(0)


def test_a_file_that_cannot_be_opened_for_want_of_descriptors_is_no_bad_image(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"x")
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = max(int(name) for name in os.listdir("/proc/self/fd"))  # noqa: PTH208
    held: list[int] = []
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most + 8, limits[1]))
        with pytest.raises(OSError, match="Too many open files"):
            held.extend(os.open(os.devnull, os.O_RDONLY) for _ in range(most + 8))
        with pytest.raises(ResourceError, match="Too many open files: raise ulimit -n"):
            base.read_file(os.fsencode(tmp_path / "a.jpg"))
        with pytest.raises(ResourceError, match="this process may open no more files"):
            OpenFiles().acquire((0, 0), str(tmp_path / "a.jpg"))
    finally:
        for file in held:
            os.close(file)
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
