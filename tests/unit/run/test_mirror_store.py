"""`checkpoint.mirror` in an object store that fails at any point."""

from __future__ import annotations

import errno
import json
import shutil
import sys
from pathlib import Path

import pytest
import torch

from hvdtrain.checkpoint_files import OPTIONAL, list_checkpoints, read_meta, verify
from hvdtrain.checkpoint_keep import Keep
from hvdtrain.engine.progress import Progress
from hvdtrain.engine.step import State
from hvdtrain.errors import ConfigError
from hvdtrain.paths import RunPaths
from hvdtrain.plan.epochs import Position
from hvdtrain.preflight.sense import config_findings
from hvdtrain.run import object_store
from hvdtrain.run.mirror import Mirror, bring_back, require_client
from tests.unit.run.data_runs import config
from tests.unit.run.shaky_store import ShakyStore
from tests.unit.run.store_runs import (
    FILES,
    ONE,
    ROOT,
    THREE,
    TWO,
    URL,
    checkpoint_files,
    lose,
    save,
    stored,
    update,
    whole,
)

pytestmark = pytest.mark.usefixtures("store")


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


def test_a_copy_has_every_file_that_a_checkpoint_may_have(tmp_path: Path, state: State) -> None:
    run = tmp_path / "run"
    more = {name: {"a": torch.ones(2)} for name in OPTIONAL}
    save(run, state, 1, more=more)
    update(run)
    assert stored() == sorted(f"{ONE}/{file}" for file in (*FILES, *OPTIONAL))
    shutil.rmtree(run)
    bring_back(RunPaths(run), URL)
    assert set(verify(run / "checkpoints" / ONE)["sha256"]) == {*FILES[1:], *OPTIONAL}
    save(run, state, 2)
    update(run)
    assert stored() == whole(TWO)  # nothing of the old one is left


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


def test_an_intact_checkpoint_needs_no_store(tmp_path: Path, state: State) -> None:
    run = tmp_path / "run"
    save(run, state, 1)
    ShakyStore.done.clear()
    assert bring_back(RunPaths(run), URL) == []
    assert ShakyStore.done == []


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


def test_the_package_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(ConfigError) as error:
        require_client("s3://bucket")
    assert "checkpoint.mirror: s3:// needs s3fs, which cannot be imported" in str(error.value)
    assert str(error.value).endswith("pip install 'hvdtrain[s3]', or pip install s3fs")
    require_client(None)
    require_client("folder")
    cfg = config(tmp_path)
    checkpoint = cfg.checkpoint.model_copy(update={"mirror": "s3://bucket"})
    (found,) = config_findings(cfg.model_copy(update={"checkpoint": checkpoint}), [])
    assert str(found) == str(error.value)
    assert found.error is ConfigError
