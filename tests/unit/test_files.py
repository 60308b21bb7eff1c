"""Files are whole or absent, whatever happens while they are written."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from hvdtrain.errors import ResourceError
from hvdtrain.files import PartFile, whole_file, write_atomically
from tests.launch import environment


def test_the_name_appears_when_the_file_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "summary.json"
    with whole_file(path) as file:
        file.write(b"one")
        file.flush()
        assert not path.exists()
    assert path.read_bytes() == b"one"
    assert list(tmp_path.iterdir()) == [path]


def test_a_second_write_replaces_the_first(tmp_path: Path) -> None:
    path = tmp_path / "summary.json"
    write_atomically(path, b"a long first content")
    with path.open("rb") as reader:
        write_atomically(path, b"two")
        assert reader.read() == b"a long first content"  # an open file stays as it was
    assert path.read_bytes() == b"two"
    assert list(tmp_path.iterdir()) == [path]


def test_an_error_while_writing_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "summary.json"
    write_atomically(path, b"old")

    def write_half() -> None:
        with whole_file(path) as file:
            file.write(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_half()
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.fixture
def full_disk() -> Iterator[int]:
    """A limit on the size of files, in bytes; more is refused as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # an error in place of a signal
    limit = 4096
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    yield limit
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


def test_a_full_disk_keeps_the_old_file(tmp_path: Path, full_disk: int) -> None:
    path = tmp_path / "summary.json"
    write_atomically(path, b"old")
    for size in (full_disk + 1, 100 * full_disk):  # refused at the end, and within
        with pytest.raises(
            ResourceError, match=r"summary\.json: cannot be written: File too large"
        ):
            write_atomically(path, bytes(size))
        assert path.read_bytes() == b"old"
        assert list(tmp_path.iterdir()) == [path]
    write_atomically(path, bytes(full_disk))
    assert path.stat().st_size == full_disk


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    path = tmp_path / "nowhere/summary.json"
    with pytest.raises(ResourceError, match=r"nowhere/summary\.json: cannot be written: No such"):
        write_atomically(path, b"one")


@pytest.mark.parametrize("points_to", ["a file", "nothing"])
def test_a_link_at_the_part_s_name_is_not_followed(tmp_path: Path, points_to: str) -> None:
    """In a folder that others may write to, it could lead to any file of the user."""
    victim = tmp_path / "victim"
    if points_to == "a file":
        victim.write_bytes(b"precious")
    path = tmp_path / "summary.json"
    (tmp_path / ".summary.json.part").symlink_to(victim)
    write_atomically(path, b"one")
    assert path.read_bytes() == b"one"
    assert not path.is_symlink()
    assert victim.exists() == (points_to == "a file")
    if points_to == "a file":
        assert victim.read_bytes() == b"precious"


def test_a_link_made_in_between_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody puts the link there after the old part file was deleted."""
    victim, path = tmp_path / "victim", tmp_path / "summary.json"
    victim.write_bytes(b"precious")
    unlink = Path.unlink

    def unlink_and_link(self: Path, missing_ok: bool = False) -> None:
        unlink(self, missing_ok=missing_ok)
        self.symlink_to(victim)

    monkeypatch.setattr(Path, "unlink", unlink_and_link)
    with pytest.raises(FileExistsError):
        PartFile(path)
    assert victim.read_bytes() == b"precious"
    assert not path.exists()


def test_a_link_at_the_file_s_own_name_is_replaced(tmp_path: Path) -> None:
    victim, path = tmp_path / "victim", tmp_path / "summary.json"
    victim.write_bytes(b"precious")
    path.symlink_to(victim)
    write_atomically(path, b"one")
    assert victim.read_bytes() == b"precious"
    assert path.read_bytes() == b"one"


def test_the_part_file_of_a_killed_writer_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "summary.json"
    write_atomically(path, b"old")
    code = (
        "import sys, time; from pathlib import Path; from hvdtrain.files import PartFile\n"
        "part = PartFile(Path(sys.argv[1])); part.file.write(b'half'); part.file.flush()\n"
        "print('ready', flush=True); time.sleep(100)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(path)], env=environment(), stdout=subprocess.PIPE
    ) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"ready\n"
        writer.kill()
    assert path.read_bytes() == b"old"
    assert (tmp_path / ".summary.json.part").read_bytes() == b"half"
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


def test_a_discarded_part_leaves_nothing(tmp_path: Path) -> None:
    part = PartFile(tmp_path / "data.bin")
    part.file.write(b"half")
    part.discard()
    assert not list(tmp_path.iterdir())


def test_everyone_may_read_what_the_umask_allows(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_atomically(tmp_path / "summary.json", b"one")
    finally:
        os.umask(before)
    assert (tmp_path / "summary.json").stat().st_mode & 0o777 == 0o640
