"""Staging from a web server."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from hvdtrain.errors import DataError
from pipelines.commands.pack import pack
from pipelines.commands.scan import scan
from pipelines.commands.stage_remote import RECORD, stage
from pipelines.sources import open_source
from pipelines.sources.retries import RETRIES
from pipelines.sources.tar import write_index
from tests.unit.pipelines.pack_samples import TWO
from tests.unit.pipelines.pack_samples import contents as files
from tests.unit.pipelines.tar_samples import contents, make, sample
from tests.web import serving


@pytest.fixture
def web(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(RETRIES, "_waits_s", (0.01,) * 4)
    root = tmp_path / "served"
    root.mkdir()
    for k in range(3):
        make(root / f"a-{k}.tar", *sample(f"{k}x", k % 2, os.urandom(5_000_000)))
    (root / "classes.txt").write_text("ant\nbee\n")
    pack(str(folder), str(root / "packed"), TWO)
    with serving(root) as web:
        yield web
    RETRIES.take()


def test_shards_are_those_of_the_server_and_kept(web, tmp_path):
    target = tmp_path / "copy"
    web.faults = ["503", "cut"]
    report = stage(f"{web.url}/a-{{0..2}}.tar", str(target))
    assert (report.copied, report.kept) == (4, 0)
    here = open_source(str(web.folder / "a-{0..2}.tar"), "data.train")
    far = open_source(str(target), "data.train")
    assert contents(far) == contents(here)
    assert far.fingerprint == here.fingerprint
    for k in range(3):
        times = [int((root / f"a-{k}.tar").stat().st_mtime) for root in (web.folder, target)]
        assert times[0] == times[1]
    assert stage(f"{web.url}/a-{{0..2}}.tar", str(target)).kept == 4
    (target / "a-1.tar").write_bytes(b"x" * (target / "a-1.tar").stat().st_size)
    make(web.folder / "a-2.tar", *sample("new", 1))
    report = stage(f"{web.url}/a-{{0..2}}.tar", str(target))
    assert (report.copied, report.kept) == (2, 2)
    assert contents(open_source(str(target), "data.train")) == contents(
        open_source(str(web.folder / "a-{0..2}.tar"), "data.train")
    )
    report = stage(f"{web.url}/a-{{0..1}}.tar", str(target), delete=True)
    assert report.extra == ["a-2.tar"]
    assert not (target / "a-2.tar").exists()
    assert set(json.loads((target / RECORD).read_text())) >= {"a-0.tar", "a-1.tar"}


def test_packed_datasets_and_their_copies(web, tmp_path):
    target = tmp_path / "copy"
    assert stage(f"{web.url}/packed", str(target), copies=["32"]).copied
    source = open_source(str(target), "data.train")
    assert list(source.description["copies"]) == ["32"]
    stage(f"{web.url}/packed", str(target))
    served, staged = files(web.folder / "packed"), files(target)
    shards = [name for name in served if name.endswith((".tar", ".npz"))]
    assert {name: staged[name] for name in shards} == {name: served[name] for name in shards}
    assert contents(open_source(str(target), "data.train").at(32))
    with pytest.raises(DataError, match="stage that, with --copies 32"):
        stage(f"{web.url}/packed/32", str(tmp_path / "other"))
    shard = next(web.folder.glob("packed/48/*.tar"))
    content = bytearray(shard.read_bytes())
    content[1000] ^= 1
    shard.write_bytes(content)
    with pytest.raises(DataError, match=r"48/.*\.tar: damaged: its checksum differs"):
        stage(f"{web.url}/packed", str(tmp_path / "third"))


def test_a_server_that_fails_is_one_line_and_leaves_no_shard(web, tmp_path):
    web.faults, web.faulty = ["503"] * 100, "a-1.tar"
    with pytest.raises(DataError, match=r"a-1\.tar: cannot read: HTTP 503"):
        stage(f"{web.url}/a-{{0..2}}.tar", str(tmp_path / "copy"))
    assert not (tmp_path / "copy" / "a-1.tar").exists()


def test_a_description_that_leads_out_of_the_dataset_is_refused(web, tmp_path):
    file = web.folder / "packed" / "dataset.json"
    for name in ("32/../../x", "/etc/x", "../x"):
        description = json.loads(file.read_text())
        description["files"][name] = {"size": 1, "crc32": 1}
        (web.folder / "packed" / "dataset.json").write_text(json.dumps(description))
        with pytest.raises(DataError, match="expected http://HOST/PATH"):
            stage(f"{web.url}/packed", str(tmp_path / "copy"))


def test_other_commands_want_a_copy(web):
    with pytest.raises(DataError, match=r"is on a server: copy it first: hvdtrain data stage http"):
        scan(f"{web.url}/packed", None, 1, lambda *_: None)
    with pytest.raises(DataError, match=r"is on a server: copy it first"):
        pack(f"{web.url}/packed", "x", TWO)
    with pytest.raises(DataError, match="is made at the first use"):
        write_index(f"{web.url}/a-0.tar")
