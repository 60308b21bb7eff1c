"""A read that fails for a moment is made again and counted; what cannot get better is not."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from hvdtrain import activity
from hvdtrain.cli.main import app
from hvdtrain.errors import DataError
from pipelines.sources import base, open_source, shards
from pipelines.sources.retries import IN_VAIN, RETRIES, WAITS_S, Retries
from tests.unit.pipelines.loaded import pixels
from tests.unit.pipelines.samples import COUNT, Epoch
from tests.unit.pipelines.tar_samples import make, sample


class Disk:
    """Fails `times` of the calls that it is in the place of, with an error of the operating system."""

    def __init__(self, times: int, number: int = errno.EIO) -> None:
        self.left, self.number, self.calls = times, number, 0

    def __call__(self, call: Callable) -> Callable:
        def read(*arguments, **options):  # type: ignore[no-untyped-def]
            self.calls += 1
            if self.left:
                self.left -= 1
                raise OSError(self.number, os.strerror(self.number))
            return call(*arguments, **options)

        return read


@pytest.fixture(autouse=True)
def at_once(monkeypatch) -> None:
    monkeypatch.setattr(RETRIES, "_waits_s", (0.0,) * len(WAITS_S))
    RETRIES._in_vain = 0
    RETRIES.take()


def break_reads(monkeypatch, disk: Disk) -> None:
    """Of files (`open`) and of shards (`preadv`), tar and packed."""
    monkeypatch.setattr(base.os, "open", disk(os.open))
    monkeypatch.setattr(shards.os, "preadv", disk(os.preadv))


@pytest.fixture(params=["folder", "tar", "packed"])
def dataset(request, tmp_path) -> Path:
    if request.param != "tar":
        return request.getfixturevalue(request.param)
    make(tmp_path / "0.tar", *(member for k in range(4) for member in sample(f"{k}", k)))
    return tmp_path


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.ETIMEDOUT])
def test_every_form_is_read_again(dataset, number, monkeypatch):
    source = open_source(str(dataset), "data.train")
    expected = source.read(1)
    again = open_source(str(dataset), "data.train")
    disk = Disk(len(WAITS_S), number)
    before = activity.present().beats
    with monkeypatch.context() as patch:
        break_reads(patch, disk)
        assert (again.read(1) == expected).all()
    assert not disk.left
    retried = RETRIES.take()
    assert retried.count == len(WAITS_S)
    assert len(retried.first) == 1
    assert retried.first[0].endswith(f" ({os.strerror(number)})")
    assert activity.present().beats == before  # a retry is no progress
    assert RETRIES.take().count == 0


@pytest.mark.parametrize("number", [errno.ENOENT, errno.EACCES])
def test_what_cannot_get_better_is_not_read_again(dataset, number, monkeypatch):
    source = open_source(str(dataset), "data.train")
    disk = Disk(2, number)
    with monkeypatch.context() as patch:
        break_reads(patch, disk)
        with pytest.raises(DataError, match=os.strerror(number)):
            source.read(1)
    assert disk.calls == 1
    assert RETRIES.take().count == 0


def test_a_descriptor_that_failed_is_not_used_again(tmp_path, monkeypatch):
    make(tmp_path / "0.tar", *sample("0", 0))
    source = open_source(str(tmp_path), "data.train")
    preadv, opening, opened = os.preadv, os.open, []

    def read(*arguments):  # a stale handle stays so, until the file is opened anew
        if not opened:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return preadv(*arguments)

    def open_anew(path, *arguments):
        opened.append(path)
        return opening(path, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(os, "preadv", read)
        patch.setattr(os, "open", open_anew)
        assert source.read(0).tobytes() == b"0"
    assert opened == [f"{tmp_path}/0.tar"]
    assert RETRIES.take().count == 1


def test_a_short_read_is_made_again(folder, monkeypatch):
    source = open_source(str(folder), "data.train")
    expected, fstat = source.read(0), os.fstat
    sizes = [1 << 16]

    def longer_once(file):  # a network disk whose idea of the size is older than the bytes
        state = list(fstat(file))
        state[6] += sizes.pop() if sizes else 0
        return os.stat_result(state)

    with monkeypatch.context() as patch:
        patch.setattr(base.os, "fstat", longer_once)
        assert (source.read(0) == expected).all()
    assert RETRIES.take().first == [f"{source.name(0)} (cut short while it was read)"]


def test_a_tar_that_is_cut_is_not_read_again(tmp_path):
    make(tmp_path / "0.tar", *sample("0", 0, bytes(200)))
    source = open_source(str(tmp_path), "data.train")
    os.truncate(tmp_path / "0.tar", 600)
    with pytest.raises(DataError, match="cut short"):
        source.read(0)
    assert RETRIES.take().count == 0


def test_a_listing_is_made_again(folder, monkeypatch):
    expected = open_source(str(folder), "data.train").fingerprint
    disk = Disk(2)
    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", disk(os.scandir))
        assert open_source(str(folder), "data.train").fingerprint == expected
    assert not disk.left


def test_a_disk_that_is_gone_is_not_waited_for_at_each_read():
    waits, fine = Retries((0.0, 0.0)), False

    def once() -> int:
        nonlocal calls
        calls += 1
        if fine:
            return 7
        raise OSError(errno.EIO, "gone")

    calls = 0
    for _ in range(IN_VAIN + 5):
        with pytest.raises(OSError, match="gone"):
            waits.read("f", once)
    assert calls == 3 * IN_VAIN + 5
    fine = True
    assert waits.read("f", once) == 7
    fine, calls = False, 0
    with pytest.raises(OSError, match="gone"):
        waits.read("f", once)
    assert calls == 3


def test_a_reader_that_is_told_to_stop_waits_no_longer():
    waits, calls = Retries((1000.0,)), []

    def once() -> None:
        calls.append(1)
        raise OSError(errno.EIO, "gone")

    with waits.unless(lambda: bool(calls)), pytest.raises(OSError, match="gone"):
        waits.read("f", once)
    assert len(calls) == 1


def test_a_run_uses_an_image_that_failed_once(make_loaders, folder, monkeypatch):
    loaders = make_loaders(folder, on_bad="mask")
    with monkeypatch.context() as patch:
        break_reads(patch, Disk(1))
        assert len(pixels(batch for _i, batch in loaders.train(Epoch()))) == COUNT
    assert loaders.take_retried().count == 1


def test_an_image_that_never_reads_is_masked_with_its_reason(make_loaders, folder, monkeypatch):
    loaders = make_loaders(folder, on_bad="mask")
    source = loaders.sources["train"]
    failing, opening = os.fsencode(source.name(3)), os.open

    def fails(path, *arguments):
        if path == failing:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return opening(path, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(base.os, "open", fails)
        batches = [batch for _i, batch in loaders.train(Epoch())]
    [bad] = [bad for batch in batches for bad in batch.bad]
    assert (bad.index, bad.reason, bad.crc32) == (3, "read", None)
    assert loaders.take_retried().count == len(WAITS_S)


def test_data_scan_tells_what_it_has_read_again(folder, tmp_path, monkeypatch):
    opening, failed = os.open, []

    def fails_once(path, *arguments):
        if isinstance(path, bytes) and path.endswith(b"ant/3.JPEG") and not failed:
            failed.append(path)
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return opening(path, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(base.os, "open", fails_once)
        command = ["data", "scan", str(folder), "--output", str(tmp_path / "manifest")]
        done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    shown = f"{folder}/ant/3.JPEG (Input/output error)"
    assert f"hvdtrain: note: reads failed and were tried again (1): {shown}\n" in done.stderr
