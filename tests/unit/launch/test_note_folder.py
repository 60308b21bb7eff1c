"""What a killed `hvdtrain launch` leaves is removed by the next one; that of a living one is not."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from hvdtrain.errors import ResourceError
from hvdtrain.launch.note_folder import (
    LOCK,
    OPEN_MPI,
    SESSION,
    SHARED_MEMORY,
    YOUNG_S,
    note_folder,
    open_mpi_folders,
    remove_session,
)
from tests.launch import environment

HOLD = """
import sys
from hvdtrain.launch.note_folder import note_folder
with note_folder() as folder:
    print(folder, flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def age(folder: Path) -> None:
    then = folder.stat().st_mtime - 2 * YOUNG_S
    os.utime(folder, (then, then))


def test_the_next_start_removes_what_a_killed_process_has_left(place: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLD],
        env=environment({"TMPDIR": str(place)}),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as other:
        assert other.stdout is not None
        folder = Path(other.stdout.readline().strip())
        with note_folder() as own:
            assert own.is_dir()
            assert folder.is_dir()  # its process lives
        assert not own.exists()
        other.kill()
    with note_folder():
        assert not folder.exists()


def test_a_folder_stays_as_long_as_a_rank_of_its_killed_launcher_lives(place: Path) -> None:
    with note_folder() as folder:
        pass
    folder.mkdir()
    (folder / LOCK).touch()
    env = environment({"OMPI_MCA_orte_tmpdir_base": str(folder)})
    with subprocess.Popen(
        [sys.executable, "-c", "print(flush=True); input()"],
        env=env,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as rank:
        assert rank.stdout is not None
        rank.stdout.readline()  # Linux shows no environment while a process is being started
        with note_folder():
            assert folder.is_dir()
        rank.kill()
    with note_folder():
        assert not folder.exists()


def test_folders_that_are_young_or_not_ours_stay(place: Path) -> None:
    young, strange, empty = (place / f"hvdtrain-launch-{name}" for name in ("a", "b", "c"))
    for folder in (young, strange, empty):
        folder.mkdir()
    (strange / "file").write_text("x")
    age(strange)
    age(empty)
    with note_folder():
        assert young.exists()
        assert strange.exists()
        assert not empty.exists()


def test_no_room(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(place / "missing"))
    with pytest.raises(ResourceError, match="TMPDIR: no folder for temporary files"), note_folder():
        pass


def test_a_folder_from_before_the_clock_was_set_back_is_removed(place: Path) -> None:
    old = place / "hvdtrain-launch-old"
    old.mkdir()
    later = time.time() + 86400
    os.utime(old, (later, later))
    with note_folder():
        assert not old.exists()


def test_open_mpi_keeps_its_files_in_folders_of_ours(place: Path) -> None:
    given = {"OMPI_MCA_btl_sm_backing_directory": "/elsewhere"}
    with open_mpi_folders(given) as variables:
        session = Path(variables["OMPI_MCA_orte_tmpdir_base"])
        shared = Path(variables["OMPI_MCA_btl_vader_backing_directory"])
        assert session.parent == place
        assert shared.parent == SHARED_MEMORY
        assert session.is_dir()
        assert shared.is_dir()
        assert set(variables) == set(OPEN_MPI) - set(given)
    assert not session.exists()
    assert not shared.exists()


def test_a_rank_removes_the_session_of_its_launcher_alone(place: Path) -> None:
    session, other, strange = (place / name for name in ("ompi.n.0/pid.7", "ompi.n.0/pid.8", "a/b"))
    for folder in (session / "0/1", other, strange):
        folder.mkdir(parents=True)
    remove_session({})
    remove_session({SESSION: str(strange)})
    remove_session({SESSION: str(session)})
    assert not session.exists()
    assert other.exists()
    assert strange.exists()
    remove_session({SESSION: str(other)})
    assert not other.parent.exists()
