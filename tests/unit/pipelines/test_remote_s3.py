"""Datasets in the S3 of moto: skipped without s3fs and moto[server], which `make setup` does not install."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from hvdtrain.config.data import RemoteCache
from hvdtrain.errors import DataError
from pipelines.commands.pack import pack
from pipelines.commands.stage_remote import stage
from pipelines.sources import open_source
from pipelines.sources.remote.clients import client_for
from pipelines.sources.remote.objects import OBJECTS
from tests import stores
from tests.unit.pipelines.pack_samples import TWO
from tests.unit.pipelines.tar_samples import contents, make, sample


@pytest.fixture(scope="module")
def served(folder: Path, tmp_path_factory: pytest.TempPathFactory):
    """The folder that the bucket has the files of, and the address of the server."""
    root = tmp_path_factory.mktemp("served")
    (root / "a").mkdir()
    for k in range(3):
        make(root / "a" / f"{k}.tar", *sample(f"{k}x", k % 2, os.urandom(1_500_000)))
    (root / "a" / "classes.txt").write_text("ant\nbee\n")
    (root / "a" / "notes.md").write_text("none")
    pack(str(folder), str(root / "packed"), TWO)
    with stores.s3(root) as address:
        yield root, address


@pytest.fixture
def root(served, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, value in {**stores.KEYS, "AWS_ENDPOINT_URL": served[1]}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(OBJECTS, "_clients", {})
    return served[0]


def opened(path: str, tmp_path: Path):
    cache = RemoteCache(folder=str(tmp_path / "cache"))
    return open_source(f"s3://bucket/{path}", "data.train", remote=cache)


def test_samples_are_those_of_the_disk(root, tmp_path):
    for path in ("a/{0..2}.tar", "a/[0-2].tar", "a", "packed", "packed/32"):
        here, far = open_source(f"{root}/{path}", "data.train"), opened(path, tmp_path)
        assert far.fingerprint == here.fingerprint
        assert far.classes == here.classes
        assert contents(far) == contents(here)
    assert opened("a", tmp_path).left_out.counts == {".md": 1}
    assert stage("s3://bucket/a", str(tmp_path / "copy")).copied == 4
    assert contents(open_source(str(tmp_path / "copy"), "data.train")) == contents(
        open_source(f"{root}/a", "data.train")
    )


def test_what_is_not_there(root, tmp_path):
    for path, line in {
        "a/{0..3}.tar": r"s3://bucket/a/3\.tar: no such object",
        "b": "no tar files in it",
        "a/x-*.tar": "no object matches this pattern",
    }.items():
        with pytest.raises(DataError, match=line) as error:
            opened(path, tmp_path)
        assert stores.SECRET not in str(error.value)


def test_an_object_that_changes_is_noticed(root):
    url = "s3://bucket/a/0.tar"
    content = (root / "a" / "0.tar").read_bytes()
    state = OBJECTS.state(url)
    store = client_for(url)._client
    changed = content[:1000] + bytes([content[1000] ^ 1]) + content[1001:]
    for new, line in ((changed, "changed while it was in use"), (content[:-512], "changed while")):
        for body in (new, content):
            store.put_object(Bucket="bucket", Key="a/0.tar", Body=body)
            if body is new:
                with pytest.raises(DataError, match=line):
                    OBJECTS.read(url, state, 0, 2000)
    assert OBJECTS.read(url, state, 0, 2000) == content[:2000]


def test_without_credentials_requests_are_anonymous(root, monkeypatch, tmp_path):
    for name in stores.KEYS:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    assert "0.tar" in client_for("s3://bucket/a").names("s3://bucket/a/")
