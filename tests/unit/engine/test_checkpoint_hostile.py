"""Checkpoints from elsewhere: no `meta.json` makes a traceback, or opens a file of another place."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hvdtrain import checkpoint_files
from hvdtrain.checkpoint_files import FILES, verify
from hvdtrain.engine.checkpoint import _sealed, load_checkpoint, save_checkpoint
from hvdtrain.errors import CheckpointError
from hvdtrain.optim.ema import Ema
from tests.step_samples import network, state_of

LABELS: dict[str, Any] = {"model": "tiny", "classes": 7}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint(state_of(network()), tmp_path_factory.mktemp("c"), 2, LABELS)


@pytest.fixture
def meta(saved: Path) -> Iterator[dict[str, Any]]:
    """The metadata, to change; the file is as it was afterwards."""
    original = (saved / "meta.json").read_bytes()
    yield json.loads(original)["meta"]
    (saved / "meta.json").unlink(missing_ok=True)
    (saved / "meta.json").write_bytes(original)


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that were opened to check a checkpoint."""
    files: list[Path] = []
    really = checkpoint_files.open_regular
    monkeypatch.setattr(
        checkpoint_files, "open_regular", lambda file: files.append(file) or really(file)
    )
    return files


def refused(saved: Path, content: bytes) -> str:
    (saved / "meta.json").write_bytes(content)
    with pytest.raises(CheckpointError) as raised:
        verify(saved)
    line = str(raised.value)
    assert "\n" not in line
    assert len(line) < len(str(saved)) * 2 + 350, line
    return line


def sealed_anyhow(meta: object) -> bytes:
    body = json.dumps(meta, sort_keys=True)
    seal = hashlib.sha256(body.encode()).hexdigest()
    return json.dumps({"meta": meta, "seal": seal}).encode()


def changed(meta: dict[str, Any], path: str, value: object) -> dict[str, Any]:
    meta = copy.deepcopy(meta)
    *parents, last = path.split("/")
    inner = meta
    for key in parents:
        inner = inner[key]
    if value is ...:
        del inner[last]
    else:
        inner[last] = value
    return meta


DIGEST = "0" * 64


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("format", ..., "not written by hvdtrain: format"),
        ("format", "1", "not written by hvdtrain: format"),
        ("format", [1], "not written by hvdtrain: format"),
        ("format", 10**4000, "format 1000000"),
        ("position", ..., "not written by hvdtrain: position"),
        ("position/epoch", -1, "position.epoch"),
        ("position/epoch", 10**30, "position.epoch"),
        ("position/epoch", 1.5, "position.epoch"),
        ("position/more", 1, "position.more"),
        ("step", "1", "not written by hvdtrain: step"),
        ("samples", None, "not written by hvdtrain: samples"),
        ("train_seconds", float("nan"), "train_seconds"),
        ("scaler", {"scale": 1}, "not written by hvdtrain: scaler"),
        ("top1", "best", "not written by hvdtrain: top1"),
        ("top1", float("nan"), "not written by hvdtrain: top1"),
        ("scaler", [], "not written by hvdtrain: scaler"),
        ("noise_scale", {"trace": "x"}, "noise_scale.trace"),
        ("noise_scale", {"other": 1}, "noise_scale.other"),
        ("labels", ..., "not written by hvdtrain: labels"),
        ("labels", ["a"], "not written by hvdtrain: labels"),
        ("sha256", ..., "not written by hvdtrain: sha256"),
        ("sha256", [], "not written by hvdtrain: sha256"),
        ("sha256", {}, "sha256 names none"),
        ("sha256/model.safetensors", ..., "sha256 names optimizer.safetensors, expected"),
        ("sha256/model.safetensors", 1, "not written by hvdtrain: sha256"),
        ("sha256/model.safetensors", "zz", "not written by hvdtrain: sha256"),
        ("sha256//etc/shadow", DIGEST, "KeyError"),
    ],
)
def test_a_value_that_no_run_writes(
    path: str, value: object, message: str, saved: Path, meta: dict[str, Any]
) -> None:
    if path == "sha256//etc/shadow":
        content, message = copy.deepcopy(meta), "sha256 names /etc/shadow"
        content["sha256"]["/etc/shadow"] = value
    else:
        content = changed(meta, path, value)
    assert message in refused(saved, _sealed(content))


@pytest.mark.parametrize("name", ["/etc/shadow", "/dev/zero", "../x", "meta.json", "", "\x1b[31m"])
def test_no_other_file_is_opened(
    name: str, saved: Path, meta: dict[str, Any], opened: list[Path]
) -> None:
    meta["sha256"][name] = DIGEST
    assert "sha256 names" in refused(saved, _sealed(meta))
    assert opened == [saved / "meta.json"]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"null",
        b"[]",
        b"{}",
        b'{"meta": 1}',
        b'{"seal": 1}',
        b'{"meta": {}, "seal": null}',
        b"[" * 100_000,
        b'{"meta":' * 100_000,
        b'{"meta": ' + b"9" * 5000 + b"}",
        b"\xff\xfe",
        sealed_anyhow([]),
        sealed_anyhow(None),
        sealed_anyhow("x"),
        sealed_anyhow({}),
    ],
    ids=range(15),
)
def test_no_metadata_at_all(content: bytes, saved: Path, meta: dict[str, Any]) -> None:
    refused(saved, content)


def test_bounded_size(saved: Path, meta: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint_files, "MAX_META_BYTES", 100)
    assert "longer than" in refused(saved, _sealed(meta))


@pytest.mark.parametrize("name", ["meta.json", "model.safetensors", "optimizer.safetensors"])
@pytest.mark.parametrize("kind", ["link", "dangling", "pipe", "folder", "device"])
def test_only_regular_files(name: str, kind: str, tmp_path: Path) -> None:
    path = save_checkpoint(state_of(network()), tmp_path, 2, LABELS)
    file = path / name
    file.rename(tmp_path / "moved")
    if kind == "link":
        file.symlink_to(tmp_path / "moved")
    elif kind == "dangling":
        file.symlink_to("/nowhere")
    elif kind == "pipe":
        os.mkfifo(file)
    elif kind == "folder":
        file.mkdir()
    else:
        file.symlink_to("/dev/zero")
    with pytest.raises(CheckpointError, match=rf"{name}: (a link|not a regular file)"):
        verify(path)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    """Also with averaged weights, with metadata of later versions, and without what old ones lack."""
    state = state_of(network())
    state.ema = Ema(state.model, 0.9)
    path = save_checkpoint(state, tmp_path, 2, LABELS)
    meta = verify(path)
    assert set(meta["sha256"]) == {"model.safetensors", "optimizer.safetensors", "ema.safetensors"}
    del meta["noise_scale"]
    meta |= {
        "later": {"classes": ["é", "b"]},
        "scaler": {
            "scale": 65536.0,
            "growth_factor": 2.0,
            "backoff_factor": 0.5,
            "growth_interval": 2000,
            "_growth_tracker": 3,
        },
    }
    (path / "meta.json").write_bytes(_sealed(meta))
    assert verify(path) == meta
    load_checkpoint(state, path, meta, LABELS)


def test_files_that_fit_their_hashes_but_hold_no_tensors(tmp_path: Path) -> None:
    state = state_of(network())
    path = save_checkpoint(state, tmp_path, 2, LABELS)
    for content in (b"", b"x" * 99, (2**60).to_bytes(8, "little") + b"{}"):
        meta = verify(save_checkpoint(state, tmp_path, 2, LABELS))
        (path / "model.safetensors").write_bytes(content)
        meta["sha256"]["model.safetensors"] = hashlib.sha256(content).hexdigest()
        (path / "meta.json").write_bytes(_sealed(meta))
        with pytest.raises(CheckpointError, match=r"model\.safetensors: not written by hvdtrain"):
            load_checkpoint(state, path, verify(path), LABELS)


leaves = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(["/etc/shadow", "/dev/zero", "../../x", "e0000", DIGEST, "\x1b[2J", "\ud800"])
)
values = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3)
    ),
    max_leaves=9,
)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths of all values in `value`."""
    found = [path]
    if isinstance(value, (dict, list)):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            found += places(inner, (*path, key))
    return found


@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_random_changes(
    data: st.DataObject, saved: Path, meta: dict[str, Any], opened: list[Path]
) -> None:
    """Any part replaced, removed or added to: loaded, or one line; nothing else is opened."""
    content: Any = copy.deepcopy(meta)
    for _ in range(data.draw(st.integers(1, 3))):
        spots = [place for place in places(content) if place]
        if not spots:
            break
        *parents, last = data.draw(st.sampled_from(spots))
        inner = content
        for key in parents:
            inner = inner[key]
        action = data.draw(st.sampled_from(["replace", "remove", "add"]))
        if action == "remove":
            del inner[last]
        elif action == "add" and isinstance(inner, dict):
            inner[data.draw(st.text(max_size=9) | st.sampled_from(["/dev/zero", "..", "a/b"]))] = (
                data.draw(values)
            )
        else:
            inner[last] = data.draw(values)
    (saved / "meta.json").write_bytes(sealed_anyhow(content))
    with contextlib.suppress(CheckpointError):
        load_checkpoint(state_of(network()), saved, verify(saved), LABELS)
    assert set(opened) <= {saved / name for name in (*FILES, "meta.json")}


@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(content=st.binary(max_size=300) | values.map(lambda v: json.dumps(v).encode()))
def test_random_files(content: bytes, saved: Path, meta: dict[str, Any]) -> None:
    refused(saved, content)
