"""`checkpoint.mirror` in an object store that fails at any point."""

from __future__ import annotations

import errno
import json
import shutil
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from hvdtrain.checkpoint_files import Keep, list_checkpoints, read_meta, verify
from hvdtrain.config import object_urls
from hvdtrain.engine.checkpoint import contents, metadata, write_checkpoint
from hvdtrain.engine.progress import Progress
from hvdtrain.engine.step import State
from hvdtrain.errors import ConfigError, ResourceError
from hvdtrain.paths import RunPaths
from hvdtrain.plan.epochs import Position
from hvdtrain.run import object_store
from hvdtrain.run.mirror import Mirror, bring_back, require_client
from tests.step_samples import network, state_of
from tests.unit.run.shaky_store import ShakyStore

URL = "memory://bucket/some/runs"
ROOT = "bucket/some/runs/run"
ONE, TWO, THREE = (f"e000{epoch}-s0000000000" for epoch in (1, 2, 3))
FILES = ["meta.json", "model.safetensors", "optimizer.safetensors"]


@pytest.fixture(autouse=True)
def _store(monkeypatch: pytest.MonkeyPatch) -> None:
    client = object_urls.Client(ShakyStore.__module__, "ShakyStore", "memory")
    monkeypatch.setitem(object_urls.CLIENTS, "memory", client)
    monkeypatch.setattr(object_store, "PAUSE_S", 0.0)
    monkeypatch.setattr(object_store, "_lower_priority", lambda: None)  # other tests run beside
    ShakyStore.reset()


@pytest.fixture(scope="module")
def state() -> State:
    return state_of(network())


def save(run: Path, state: State, epoch: int, keep: int = 1, seconds: float = 0.0) -> None:
    """Write a checkpoint, and the description of the run."""
    run.mkdir(exist_ok=True)
    (run / "config.yaml").write_text("name: run\n")
    state.progress = Progress(Position(epoch, 0), train_seconds=seconds)
    write_checkpoint(contents(state), metadata(state, {}), run / "checkpoints", Keep(keep))


def update(run: Path, keep: int = 1) -> list[str]:
    """Bring the mirror up to date, as a new attempt does; what there is to tell."""
    mirror = Mirror(RunPaths(run), URL, Keep(keep))
    mirror.start()
    mirror.finish()
    return mirror.notes()


def stored() -> list[str]:
    """Names of the files of checkpoints in the store."""
    return sorted(path.removeprefix(f"{ROOT}/checkpoints/") for path in checkpoint_files())


def checkpoint_files() -> list[str]:
    return [path for path in ShakyStore.objects if path.startswith(f"{ROOT}/checkpoints/")]


def whole(*names: str) -> list[str]:
    return [f"{name}/{file}" for name in names for file in FILES]


def fail(operation: str, error: BaseException, path: str = "") -> None:
    """Let each such operation fail."""

    def fault(done: str, where: str) -> None:
        if done == operation and path in where:
            raise error

    ShakyStore.fault = staticmethod(fault)


def lose(run: Path) -> list[str]:
    """Lose the run directory, and bring back what the mirror has."""
    shutil.rmtree(run)
    return bring_back(RunPaths(run), URL)


def test_a_copy_is_the_same_and_comes_back(tmp_path: Path, state: State) -> None:
    run = tmp_path / "run"
    save(run, state, 1)
    assert update(run) == []
    there = dict(ShakyStore.objects)
    for file in (run / "checkpoints" / ONE).iterdir():
        assert there[f"{ROOT}/checkpoints/{ONE}/{file.name}"] == file.read_bytes()
    assert there[f"{ROOT}/config.yaml"] == b"name: run\n"
    owner = json.loads(there[f"{ROOT}/mirror.json"])
    assert owner == {"run": str(run), "id": (run / "mirror.id").read_text()}
    meta = (run / "checkpoints" / ONE / "meta.json").read_bytes()
    text = f"no checkpoint in {run}/checkpoints is intact: {ONE} was copied back from the mirror"
    assert lose(run) == [f"{text} {URL}/run"]
    assert (run / "checkpoints" / ONE / "meta.json").read_bytes() == meta
    assert (run / "config.yaml").read_text() == "name: run\n"
    verify(run / "checkpoints" / ONE)
    assert update(run) == []  # the same run


def test_the_mirror_keeps_what_the_run_keeps(tmp_path: Path, state: State) -> None:
    run, keep = tmp_path / "run", Keep(1, every=2)
    mirror = Mirror(RunPaths(run), URL, keep)
    for epoch in range(1, 6):
        save(run, state, epoch)
        state.progress = Progress(Position(epoch, 0))
        mirror.start()
        mirror.finish()
        if epoch == 3:
            foreign = f"{ROOT}/checkpoints/{ONE}/mine.txt"
            ShakyStore.objects[foreign] = b"of somebody else"
    assert mirror.notes() == []
    # The run itself has only the last; what the rules keep stays in the mirror.
    kept = whole("e0002-s0000000000", "e0004-s0000000000", "e0005-s0000000000")
    assert stored() == [f"{ONE}/mine.txt", *kept]


def test_a_second_update_uploads_nothing(tmp_path: Path, state: State) -> None:
    run = tmp_path / "run"
    save(run, state, 1)
    update(run)
    ShakyStore.done.clear()
    assert update(run) == []
    assert [path for done, path, _ in ShakyStore.done if "safetensors" in path] == []


@pytest.mark.parametrize("same_place", [False, True])
def test_a_job_that_is_killed_at_any_operation(
    tmp_path: Path, state: State, same_place: bool
) -> None:
    """Whenever it is, an intact checkpoint is in the store, and the next job clears up."""
    run, before = tmp_path / "run", tmp_path / "before"
    save(run, state, 1)
    update(run)
    old = read_meta(run / "checkpoints" / ONE)
    files = dict(ShakyStore.objects)
    save(run, state, 1 if same_place else 2, seconds=9.0)
    name = ONE if same_place else TWO
    new = read_meta(run / "checkpoints" / name)
    shutil.copytree(run, before)
    for number in range(100):
        ShakyStore.reset()
        ShakyStore.objects.update(files)

        def killed(operation: str, path: str, number: int = number) -> None:
            if len(ShakyStore.done) > number:
                raise OSError(errno.EIO, "killed")

        ShakyStore.fault = staticmethod(killed)
        told = update(run)
        if not told:
            break
        ShakyStore.fault = staticmethod(lambda operation, path: None)
        assert "copied back" in lose(run)[-1]
        assert read_meta(list_checkpoints(run / "checkpoints")[0]) in (old, new)
        shutil.rmtree(run)
        shutil.copytree(before, run)
        assert update(run) == []
        assert [line.partition("/")[2] for line in stored()] == FILES
        for path in checkpoint_files():
            own = run / "checkpoints" / name / Path(path).name
            assert ShakyStore.objects[path] == own.read_bytes()
    assert number > 15
    assert [line.partition("/")[2] for line in stored()] == FILES


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


def test_an_intact_checkpoint_needs_no_store(tmp_path: Path, state: State) -> None:
    run = tmp_path / "run"
    save(run, state, 1)
    ShakyStore.done.clear()
    assert bring_back(RunPaths(run), URL) == []
    assert ShakyStore.done == []


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


def test_memory_is_bounded(tmp_path: Path, state: State, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(object_store, "CHUNK", 1000)
    run = tmp_path / "run"
    save(run, state, 1)
    assert update(run) == []
    assert "copied back" in lose(run)[-1]
    verify(run / "checkpoints" / ONE)
    sizes = [size for done, path, size in ShakyStore.done if "safetensors" in path]
    assert len(sizes) > 10
    assert max(sizes) == 1000


def test_a_place_that_is_not_free(tmp_path: Path, state: State) -> None:
    run = tmp_path / "run"
    save(run, state, 1)
    ShakyStore.objects[f"{ROOT}/mine.txt"] = b""
    nothing = "nothing is copied there"
    assert update(run) == [
        f"checkpoint.mirror: {URL}/run: is no mirror: {nothing}; training goes on"
    ]
    ShakyStore().pipe_file(f"{ROOT}/mirror.json", b'{"run": "/else\\u001bwhere/run"}')
    (told,) = update(run)
    assert rf"{URL}/run: is the mirror of /else\x1bwhere/run: {nothing}" in told
    assert lose(run) == []
    assert stored() == []


def test_another_run_in_the_same_directory(tmp_path: Path, state: State) -> None:
    """One that began anew: it neither takes the mirror over nor goes on from it."""
    run = tmp_path / "run"
    save(run, state, 3)
    update(run)
    shutil.rmtree(run)
    save(run, state, 1)
    (told,) = update(run)
    assert f"{URL}/run: is the mirror of an earlier run in {run}: nothing is copied there" in told
    assert stored() == whole(THREE)
    (run / "mirror.id").write_text("another")
    shutil.rmtree(run / "checkpoints")
    assert bring_back(RunPaths(run), URL) == []
    (run / "mirror.id").unlink()
    assert THREE in bring_back(RunPaths(run), URL)[-1]


def test_a_damaged_copy_is_passed_over(tmp_path: Path, state: State) -> None:
    run = tmp_path / "run"
    for epoch in (1, 2, 3):
        save(run, state, epoch, keep=3)
    assert update(run, keep=3) == []
    ShakyStore.objects[f"{ROOT}/checkpoints/{THREE}/model.safetensors"] = b"other"
    del ShakyStore.objects[f"{ROOT}/checkpoints/{TWO}/optimizer.safetensors"]
    told = lose(run)
    assert f"{URL}/run/checkpoints/{THREE}/model.safetensors: damaged" in told[0]
    assert f"{ONE} was copied back" in told[-1]
    assert [path.name for path in list_checkpoints(run / "checkpoints")] == [ONE]
    assert sum("not copied" in line for line in told) == len(told) - 1


def test_the_package_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(ConfigError) as error:
        require_client("s3://bucket")
    assert "checkpoint.mirror: s3:// needs s3fs, which cannot be imported" in str(error.value)
    assert str(error.value).endswith("pip install 'hvdtrain[s3]', or pip install s3fs")
    require_client(None)
    require_client("folder")
