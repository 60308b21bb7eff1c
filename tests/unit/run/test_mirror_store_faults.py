"""What `checkpoint.mirror` does where an object store refuses, changes bytes or does not answer."""

from __future__ import annotations

import errno
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from hvdtrain.checkpoint_keep import Keep
from hvdtrain.engine.step import State
from hvdtrain.errors import ResourceError
from hvdtrain.paths import RunPaths
from hvdtrain.run import object_store
from hvdtrain.run.mirror import Mirror, bring_back
from tests.unit.run.shaky_store import ShakyStore
from tests.unit.run.store_runs import (
    FILES,
    ONE,
    THREE,
    TWO,
    URL,
    fail,
    lose,
    save,
    stored,
    update,
    whole,
)

pytestmark = pytest.mark.usefixtures("store")


@pytest.mark.parametrize("file", FILES)
def test_changed_bytes_do_not_count(
    tmp_path: Path, state: State, monkeypatch: pytest.MonkeyPatch, file: str
) -> None:
    run = tmp_path / "run"
    save(run, state, 1)
    mirror = Mirror(RunPaths(run), URL, Keep(1))

    def changed(path: str, data: bytes) -> bytes:
        return data[:-1] + bytes([data[-1] ^ 1]) if path.endswith(file) else data

    with monkeypatch.context() as patched:
        patched.setattr(ShakyStore, "changed", staticmethod(changed))
        mirror.start()
        mirror.finish()
        what = f"{URL}/run: {file} of {ONE} is damaged when it is read again: not copied"
        assert mirror.notes() == [f"checkpoint.mirror: {what}; training goes on"]
        assert stored() == []
    mirror.start()
    mirror.finish()
    assert mirror.notes() == []
    assert stored() == whole(ONE)


def test_a_damaged_checkpoint_is_not_copied(tmp_path: Path, state: State) -> None:
    run = tmp_path / "run"
    save(run, state, 1)
    model = run / "checkpoints" / ONE / "model.safetensors"
    model.write_bytes(model.read_bytes()[:-1] + b"\x55")
    (told,) = update(run)
    assert f"{model}: damaged" in told
    assert told.endswith(": not copied; training goes on")
    assert stored() == []


def test_a_deletion_that_is_refused(tmp_path: Path, state: State) -> None:
    run = tmp_path / "run"
    mirror = Mirror(RunPaths(run), URL, Keep(1))
    fail("delete", PermissionError("Access Denied"))
    told = []
    for epoch in (1, 2, 3):
        save(run, state, epoch)
        mirror.start()
        mirror.finish()
        told += mirror.notes()
    assert told == [f"checkpoint.mirror: {URL}/run: Access Denied; training goes on"]
    assert stored() == whole(ONE, TWO, THREE)
    ShakyStore.fault = staticmethod(lambda operation, path: None)
    mirror.start()
    mirror.finish()
    assert stored() == whole(THREE)


@pytest.mark.parametrize(
    ("operation", "error", "text"),
    [
        (
            "write",
            FileNotFoundError("The specified bucket does not exist"),
            "bucket does not exist",
        ),
        ("write", FileNotFoundError("bucket/x"), "no such bucket or file"),
        ("list", PermissionError("Access Denied"), "Access Denied"),
        (
            "open",
            RuntimeError("No route\n to https://u:pw1@h/x?sig=pw2"),
            "route to https://…@h/x?…",
        ),
        ("read", ValueError("of pw3-in-environment, Request 123"), "of …, Request 123"),
        ("list", KeyError(), "KeyError"),
    ],
)
def test_a_fault_is_one_line_without_secrets(
    tmp_path: Path,
    state: State,
    monkeypatch: pytest.MonkeyPatch,
    operation: str,
    error: BaseException,
    text: str,
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "pw3-in-environment")
    run = tmp_path / "run"
    mirror = Mirror(RunPaths(run), URL, Keep(1))
    fail(operation, error)
    told = []
    for epoch in (1, 2):
        save(run, state, epoch)
        mirror.start()
        mirror.finish()
        told += mirror.notes()
    (line,) = told
    assert line.startswith(f"checkpoint.mirror: {URL}/run: ")
    assert text in line
    assert line.endswith("; training goes on")
    assert "pw" not in line
    ShakyStore.fault = staticmethod(lambda operation, path: None)
    mirror.start()
    mirror.finish()
    assert stored() == whole(TWO)


def passing(times: int) -> Callable[[str, str], None]:
    """Each operation on a path fails so many times."""
    seen: dict[tuple[str, str], int] = {}

    def fault(operation: str, path: str) -> None:
        seen[operation, path] = seen.get((operation, path), 0) + 1
        if seen[operation, path] <= times and operation in ("list", "read", "write", "part"):
            raise OSError(errno.EIO, "try again")

    return fault


def test_errors_that_pass_are_tried_again(tmp_path: Path, state: State) -> None:
    run = tmp_path / "run"
    save(run, state, 1)
    ShakyStore.fault = staticmethod(passing(2))
    assert update(run) == []
    assert stored() == whole(ONE)
    ShakyStore.fault = staticmethod(passing(2))
    assert "copied back" in lose(run)[-1]
    ShakyStore.fault = staticmethod(passing(3))
    shutil.rmtree(run)
    with pytest.raises(
        ResourceError, match=r"try again: no checkpoint in .* is intact, and whether"
    ):
        bring_back(RunPaths(run), URL)
    assert not run.exists()


def test_a_store_that_does_not_answer(
    tmp_path: Path, state: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the middle of an upload: the end of the run does not wait for it, and what was begun is never
    completed. Then while it is asked for a checkpoint."""
    run, answers, reached = tmp_path / "run", threading.Event(), threading.Event()
    save(run, state, 1)
    mirror = Mirror(RunPaths(run), URL, Keep(1))

    def stall(operation: str, path: str) -> None:
        if operation == "part":
            reached.set()
            answers.wait()

    ShakyStore.fault = staticmethod(stall)
    mirror.start()
    assert reached.wait(60)
    mirror.finish(0.1)
    line = f"checkpoint.mirror: {URL}/run: not complete after 0 s; training goes on"
    assert mirror.notes() == [line]
    answers.set()
    mirror.finish()
    assert stored() == whole(ONE)
    monkeypatch.setattr(object_store, "ANSWER_S", 0.1)
    shutil.rmtree(run)
    ShakyStore.fault = staticmethod(lambda operation, path: threading.Event().wait(2))
    with pytest.raises(ResourceError, match=r"run: no answer for 0 s: no checkpoint in"):
        bring_back(RunPaths(run), URL)


@pytest.mark.parametrize("at", ["open", "part", "complete"])
def test_an_upload_that_was_given_up_stays_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    """It would replace a later one by its first bytes when its object is collected."""
    monkeypatch.setattr(object_store, "CHUNK", 10)
    source = tmp_path / "source"
    source.write_bytes(bytes(range(25)))
    answers, threads = threading.Event(), []

    def stall(operation: str, path: str) -> None:
        if operation == at and not answers.is_set():
            threads.append(threading.current_thread())
            answers.wait()

    ShakyStore.fault = staticmethod(stall)
    with source.open("rb") as file, monkeypatch.context() as patched:
        patched.setattr(object_store, "ANSWER_S", 0.1)
        patched.setattr(object_store, "TRIES", 1)
        with pytest.raises(object_store.StoreError, match="no answer"):
            object_store.ObjectStore(URL).write("a", file)
    answers.set()
    for thread in threads:
        thread.join()
    found = ShakyStore.objects.get("bucket/some/runs/a")
    assert found in ((bytes(range(25)),) if at == "complete" else (None,))
