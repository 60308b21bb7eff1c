"""Datasets on a real web server: the same samples as from a disk, whatever happens on the way, or one line."""

from __future__ import annotations

import base64
import os
import random
from pathlib import Path

import pytest

from hvdtrain.config.data import RemoteCache
from hvdtrain.errors import DataError, ResourceError
from pipelines.commands.pack import pack
from pipelines.inventory import take
from pipelines.sources import open_source
from pipelines.sources.remote import blocks, clients
from pipelines.sources.retries import RETRIES
from tests.unit.pipelines.pack_samples import TWO
from tests.unit.pipelines.tar_samples import contents, make, sample
from tests.web import Web, serving

NAMES = [f"a-{k:02d}.tar" for k in range(4)]
PATTERN = "a-{00..03}.tar"


@pytest.fixture
def web(tmp_path: Path):
    """Four shards of three large images each, and a few blocks in each shard."""
    root = tmp_path / "served"
    root.mkdir()
    rng = random.Random(0)
    for k, name in enumerate(NAMES):
        images = (rng.randbytes(700_000 + 1000 * n) for n in range(3))
        files = [f for n, i in enumerate(images) for f in sample(f"{k}{n}", f"c{n}", i)]
        make(root / name, *files)
    with serving(root) as web:
        yield web


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch):
    """No test waits for the second attempt, nor takes over what another test has counted."""
    monkeypatch.setattr(RETRIES, "_waits_s", (0.01,) * 4)
    monkeypatch.setattr(RETRIES, "_in_vain", 0)
    monkeypatch.setattr(clients, "STALL_S", 0.5)
    RETRIES.take()
    yield
    RETRIES.take()


def cache(tmp_path: Path, gb: float = 1.0) -> RemoteCache:
    return RemoteCache(folder=str(tmp_path / "cache"), size_gb=gb)


def opened(web: Web, tmp_path: Path, path: str = PATTERN, gb: float = 1.0, **more):
    return open_source(f"{web.url}/{path}", "data.train", remote=cache(tmp_path, gb), **more)


def local(web: Web, path: str = PATTERN):
    return open_source(f"{web.folder}/{path}", "data.train")


def test_samples_order_fingerprint_and_names_are_those_of_the_disk(web, tmp_path):
    (web.folder / "list.txt").write_text("\n".join(NAMES) + "\n")
    here = local(web)
    for path in (PATTERN, "list.txt"):
        far = opened(web, tmp_path, path)
        assert contents(far) == contents(here)
        assert (far.fingerprint, far.classes) == (here.fingerprint, here.classes)
        assert far.name(4) == f"{web.url}/a-01.tar:11.jpg"
        one, other = take(far, f"{web.url}/{path}"), take(here, f"{web.folder}/{PATTERN}")
        assert one.names.block == other.names.block
        assert (one.sizes == other.sizes).all()


def test_every_byte_is_fetched_once(web, tmp_path):
    first = contents(opened(web, tmp_path))
    asked = len(web.asked)
    total = sum((web.folder / name).stat().st_size for name in NAMES)
    assert web.bytes_of(".tar") == total + len(NAMES)  # and a byte of each to look at it
    assert contents(opened(web, tmp_path)) == first
    again = [each for each in web.asked[asked:] if ".tar" in each[0]]
    assert sorted(again) == [(name, 0, 1) for name in NAMES]


def test_classes_txt_beside_the_shards_names_the_numbers(web, tmp_path):
    make(web.folder / "n.tar", *sample("x", 0), *sample("y", 1))
    (web.folder / "classes.txt").write_text("ant\nbee\n")
    assert opened(web, tmp_path, "n.tar").classes == ["ant", "bee"]


@pytest.mark.parametrize("fault", ["503", "cut", "short", "reset", "stall"])
def test_a_fault_that_passes_changes_nothing(web, tmp_path, fault):
    here = contents(local(web))
    web.faults = [fault, fault]
    far = opened(web, tmp_path)
    assert contents(far) == here
    assert not web.faults
    assert RETRIES.take().count >= 2


@pytest.mark.parametrize("fault", ["503", "cut", "short", "reset", "stall"])
def test_a_fault_that_stays_is_one_line_with_the_shard(web, tmp_path, fault):
    far = opened(web, tmp_path)
    for file in (tmp_path / "cache" / "blocks").glob("*/*"):
        file.unlink()
    web.faults, web.faulty = [fault] * 100, "a-01.tar"
    with pytest.raises(DataError) as error:
        contents(far)
    assert "a-01.tar: cannot read: " in str(error.value)
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("etags", [True, False])
@pytest.mark.parametrize("scattered", [True, False])
def test_a_shard_that_changes_is_noticed(web, tmp_path, etags, scattered):
    web.etags = etags
    far = opened(web, tmp_path, gb=0.01 if scattered else 1, scattered=scattered)
    far.read(0)
    for file in (tmp_path / "cache" / "blocks").glob("*/*"):
        file.unlink()
    shard = web.folder / NAMES[1]
    content = bytearray(shard.read_bytes())
    content[100_000:100_100] = bytes(100)
    shard.write_bytes(content)
    os.utime(shard, (1, 1))
    far.read(0)
    with pytest.raises(DataError, match=r"a-01\.tar: changed while it was in use"):
        far.read(3)


def test_a_shard_that_is_cut_short_is_noticed(web, tmp_path):
    web.etags = False
    far = opened(web, tmp_path, gb=0.01, scattered=True)
    assert far._reader.exact is False  # they fit
    for file in (tmp_path / "cache" / "blocks").glob("*/*"):
        file.unlink()
    shard = web.folder / NAMES[1]
    state = shard.stat()
    shard.write_bytes(shard.read_bytes()[:-1_000_000])
    os.utime(shard, ns=(state.st_atime_ns, state.st_mtime_ns))
    with pytest.raises(DataError, match=r"a-01\.tar: changed while it was in use"):
        contents(far)
    with pytest.raises(DataError, match=r"a-01\.tar: at byte \d+: cut short"):
        opened(web, tmp_path)


def test_a_changed_shard_has_a_new_index(web, tmp_path):
    before = opened(web, tmp_path)
    make(web.folder / NAMES[0], *sample("z", "c0"))
    after = opened(web, tmp_path)
    assert (len(before), len(after)) == (12, 10)
    assert after.fingerprint == local(web).fingerprint


def test_a_damaged_block_is_fetched_again(web, tmp_path):
    here = contents(local(web))
    opened(web, tmp_path)
    for file in (tmp_path / "cache" / "blocks").glob("*/*"):
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    assert contents(opened(web, tmp_path)) == here
    for file in (tmp_path / "cache" / "index").glob("*.npz"):
        file.write_bytes(file.read_bytes()[:100])
    for file in (tmp_path / "cache" / "blocks").glob("*/*"):
        file.write_bytes(b"")
    assert contents(opened(web, tmp_path)) == here


def test_the_cache_keeps_to_its_limit(web, tmp_path, monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK", 2**18)
    monkeypatch.setattr("pipelines.sources.remote.reader.BLOCK", 2**18)
    here = contents(local(web))
    limit = 4_000_000  # of 8.4 MB
    folder = tmp_path / "cache"
    far = opened(web, tmp_path)
    far._reader.blocks.limit = limit
    for _ in range(2):
        for i, found in enumerate(here):
            assert (far.read(i).tobytes(), far.classes[far.labels[i]]) == found
            used = sum(f.stat().st_size for f in folder.glob("blocks/*/*"))
            assert used <= limit
    assert int((folder / "used").read_text()) <= limit
    [told] = RETRIES.take().first
    assert told.startswith("data.remote_cache.size_gb (too small for all ")
    assert "deleted before they are read again" in told


def test_random_reads_of_more_than_fits_fetch_the_images_alone(web, tmp_path):
    root = web.folder
    for k in range(4, 6):
        make(root / f"a-{k:02d}.tar", *sample(f"{k}", "c0", os.urandom(2_000_000)))
    far = opened(web, tmp_path, "a-{00..05}.tar", gb=0.01, scattered=True)
    web.asked.clear()
    image = far.read(4)
    assert [end - begin for _name, begin, end in web.asked] == [len(image)]


def test_a_disk_that_refuses_is_no_failure(web, tmp_path, monkeypatch):
    def full(*_args: object) -> None:
        raise OSError(28, "No space left on device")

    here = contents(local(web))
    far = opened(web, tmp_path)
    for file in (tmp_path / "cache" / "blocks").glob("*/*"):
        file.unlink()
    monkeypatch.setattr(blocks.BlockCache, "_reserve", full)
    assert contents(far) == here
    assert any("No space left on device" in one for one in RETRIES.take().first)


def test_packed_datasets(web, tmp_path, folder):
    pack(str(folder), str(web.folder / "packed"), TWO)
    for path, side in (("packed", 32), ("packed", None), ("packed/32", None)):
        here, far = local(web, path), opened(web, tmp_path, path)
        assert far.fingerprint == here.fingerprint
        assert contents(far.at(side)) == contents(here.at(side))
        one, other = take(far, f"{web.url}/{path}"), take(here, f"{web.folder}/{path}")
        assert one.names.block == other.names.block
    (web.folder / "packed" / "index.npz").write_bytes(b"other")
    assert len(opened(web, tmp_path, "packed")) == len(here)  # that in the cache
    with pytest.raises(DataError, match=r"index\.npz: damaged or missing"):
        opened(web, tmp_path / "new", "packed")


def test_refusals(web, tmp_path):
    for path, line in {
        "b-{0..3}.tar": "b-0.tar: no such object (HTTP 404)",
        "": "expected http://HOST/PATH",
        "folder": "a web server does not list its files",
        "a-*.tar": "a web server does not list its files",
        "a-00.tar?sign=s3cret": "a URL with ? or # is refused",
        "a.tar.gz": "compressed",
        "no.txt": "no such file",
    }.items():
        with pytest.raises(DataError) as error:
            opened(web, tmp_path, path)
        assert line in str(error.value)
        assert "s3cret" not in str(error.value)
    with pytest.raises(DataError, match="a user or password in a URL is refused") as error:
        open_source("https://me:s3cret@host/a.tar", "data.train")
    assert "s3cret" not in str(error.value)
    web.ranges = False
    with pytest.raises(DataError, match="no support for ranges"):
        opened(web, tmp_path)
    web.ranges, web.etags, web.dates = True, False, False
    with pytest.raises(DataError, match="neither an ETag nor a date of change"):
        opened(web, tmp_path)


def test_a_password_of_netrc(web, tmp_path, monkeypatch):
    web.password = f"Basic {base64.b64encode(b'me:s3cret').decode()}"
    with pytest.raises(DataError, match=r"access refused \(HTTP 401\)"):
        opened(web, tmp_path)
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login me password s3cret\n")
    monkeypatch.setenv("NETRC", str(netrc))
    assert len(opened(web, tmp_path)) == 12


def test_a_folder_of_another_user_is_refused(web, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    with pytest.raises(ResourceError, match="is not a folder of your own"):
        opened(web, tmp_path)
