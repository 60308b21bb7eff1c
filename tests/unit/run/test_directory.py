"""Which directory a run writes to, and that no two jobs write to one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml

from hvdtrain.comm.ranks import Solo
from hvdtrain.config.load import parse_config
from hvdtrain.config.schema import Config
from hvdtrain.errors import ResourceError
from hvdtrain.paths import STAMP
from hvdtrain.run import lock
from hvdtrain.run.directory import discarded_if_unused, run_directory
from hvdtrain.run.lock import RunLock
from tests.launch import environment

HOLDER = """
import sys
from pathlib import Path
from hvdtrain.run.lock import RunLock
held = RunLock(Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.readline()
"""


def config(output: Path) -> Config:
    return parse_config(f"name: t\noutput: {output}\nphases: [{{epochs: 1, batch_per_worker: 4}}]")


def test_runs_of_one_name_in_the_same_second_have_directories_of_their_own(tmp_path: Path) -> None:
    cfg = config(tmp_path)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: run_directory(cfg, Solo(), "never", None), range(16)))
    assert len({directory.paths.root for directory in found}) == 16
    assert all(directory.made for directory in found)


@pytest.mark.parametrize("end", ["by itself", "killed"])
def test_a_second_job_is_refused_until_the_first_has_ended(tmp_path: Path, end: str) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)],
        env=environment({"SLURM_JOB_ID": "17"}),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(ResourceError) as error:
        run_directory(config(tmp_path), Solo(), "never", tmp_path)
    text = str(error.value)
    assert text.startswith(f"{tmp_path}: in use by another job (host ")
    assert f"process {holder.pid}, Slurm job 17, since 2" in text
    assert "\n" not in text
    if end == "killed":
        holder.kill()
    holder.communicate("\n" if end == "by itself" else None)
    directory = run_directory(config(tmp_path), Solo(), "never", tmp_path)
    assert directory.lock is not None
    directory.lock.release()
    directory.lock.release()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "BEAT_S", 0.1)
    monkeypatch.setattr(lock, "SILENT_S", 2.0)


@pytest.fixture
def no_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(*_: object) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(lock.fcntl, "flock", unsupported)


@pytest.mark.usefixtures("quick", "no_locks")
def test_signs_of_life_on_a_file_system_without_locks(tmp_path: Path) -> None:
    first = RunLock(tmp_path)
    with pytest.raises(ResourceError, match="in use by another job"):
        RunLock(tmp_path)
    first.require()
    first.release()
    began = time.monotonic()
    RunLock(tmp_path).release()
    assert time.monotonic() < began + lock.SILENT_S  # it was released: nothing to wait for


@pytest.mark.usefixtures("quick")
def test_a_job_of_another_host_that_has_ended_without_a_word(tmp_path: Path) -> None:
    """Its kernel has released the lock, or the disk keeps locks to each host."""
    file = tmp_path / lock.FILE
    file.write_text("host elsewhere, process 7, since 2026-01-01 12:00:00\nbeat 3\n")
    RunLock(tmp_path).release()
    assert file.read_text() == ""


@pytest.mark.usefixtures("quick")
def test_a_job_of_another_host_that_lives(tmp_path: Path) -> None:
    file = tmp_path / lock.FILE
    holder = "host elsewhere, process 7, since 2026-01-01 12:00:00"
    file.write_text(f"{holder}\nbeat 3\n")
    timer = threading.Timer(0.5, file.write_text, [f"{holder}\nbeat 4\n"])
    timer.start()
    with pytest.raises(ResourceError, match="in use by another job"):
        RunLock(tmp_path)
    timer.join()


@pytest.mark.usefixtures("quick")
def test_a_job_whose_directory_was_taken_over_writes_no_checkpoint(tmp_path: Path) -> None:
    own = RunLock(tmp_path)
    other = "host elsewhere, process 7, since 2026-01-01 12:00:00"
    (tmp_path / lock.FILE).write_text(f"{other}\nbeat 0\n")
    time.sleep(3 * lock.BEAT_S)
    with pytest.raises(ResourceError, match="another job has taken it over"):
        own.require()
    own.release()
    assert (tmp_path / lock.FILE).read_text().startswith(other)


@pytest.mark.usefixtures("quick")
def test_an_old_lock_of_another_host_costs_no_wait(tmp_path: Path) -> None:
    file = tmp_path / lock.FILE
    file.write_text("host elsewhere, process 7, since 2026-01-01 12:00:00\nbeat 3\n")
    os.utime(file, (1, 1))
    began = time.monotonic()
    RunLock(tmp_path).release()
    assert time.monotonic() < began + lock.SILENT_S


def test_a_lock_file_never_follows_a_link(tmp_path: Path) -> None:
    (tmp_path / "other").write_text("mine")
    (tmp_path / "run").mkdir()
    (tmp_path / "run/.lock").symlink_to("../other")
    with pytest.raises(ResourceError, match="Too many levels of symbolic links"):
        run_directory(config(tmp_path), Solo(), "never", tmp_path / "run")
    assert (tmp_path / "other").read_text() == "mine"


def test_a_lock_that_cannot_be_written_leaves_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(lock.os, "open", full)
    with pytest.raises(ResourceError, match="No space left on device"):
        run_directory(config(tmp_path), Solo(), "never", None)
    monkeypatch.undo()
    assert list(tmp_path.iterdir()) == []


def test_only_a_directory_of_this_attempt_is_removed_after_an_error(tmp_path: Path) -> None:
    def fail(run_dir: Path | None) -> Path:
        directory = run_directory(config(tmp_path), Solo(), "never", run_dir)
        (directory.paths.root / "events.jsonl").write_text("{}\n")
        with pytest.raises(KeyError), discarded_if_unused(directory):
            raise KeyError
        return directory.paths.root

    assert not fail(None).exists()
    (tmp_path / "there").mkdir()
    assert fail(tmp_path / "there").exists()
    made = run_directory(config(tmp_path), Solo(), "never", None)
    (made.paths.checkpoints / "e0001-s0000000000").mkdir(parents=True)
    (made.paths.checkpoints / "e0001-s0000000000/meta.json").write_text("{}")
    with pytest.raises(KeyError), discarded_if_unused(made):
        raise KeyError
    assert made.paths.root.exists()


@pytest.mark.parametrize("text", [None, "", "name: t\nold_key: 1\n", "\0"])
def test_auto_passes_over_a_run_that_it_cannot_read(tmp_path: Path, text: str | None) -> None:
    broken = tmp_path / "t-20260101-000000"
    (broken / "checkpoints/e0001-s0000000000").mkdir(parents=True)
    (broken / "checkpoints/e0001-s0000000000/meta.json").write_text(json.dumps({}))
    if text is not None:
        (broken / "config.yaml").write_text(text)
    directory = run_directory(config(tmp_path), Solo(), "auto", None)
    assert directory.paths.root != broken
    assert not directory.must_resume
    [note] = directory.notes
    assert note.startswith(f"--resume auto passes over {broken}: ")
    assert "\n" not in note


def test_a_run_directory_with_checkpoints_is_never_begun_anew(tmp_path: Path) -> None:
    (tmp_path / "checkpoints/e0001-s0000000000").mkdir(parents=True)
    (tmp_path / "checkpoints/e0001-s0000000000/meta.json").write_text("damaged")
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config(tmp_path).model_dump()))
    assert run_directory(config(tmp_path), Solo(), "auto", tmp_path).must_resume
    assert not run_directory(config(tmp_path), Solo(), "auto", tmp_path / "new").must_resume
    assert [path.name for path in (tmp_path / "new").iterdir()] == [".lock"]


@pytest.mark.parametrize(
    ("names", "after"),
    [
        (["t-29990101-235959", "t-20200101-000000"], "t-29990102-000000"),
        (["t-29990101-235959-2"], "t-29990102-000000"),
        (["t-99999999-999999", "t-2999-1", "t-x-29990101-235959", "other-29990101-235959"], None),
    ],
)
def test_a_new_run_is_the_newest_by_its_name_though_the_clock_was_set_back(
    names: list[str], after: str | None, tmp_path: Path
) -> None:
    for name in names:
        (tmp_path / name).mkdir()
    before = f"t-{time.strftime(STAMP)}"
    found = run_directory(config(tmp_path), Solo(), "never", None).paths.name
    if after is None:
        assert before <= found <= f"t-{time.strftime(STAMP)}"
    else:
        assert found == after
