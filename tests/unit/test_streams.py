"""Output whose reader has gone, or whose encoding lacks a character."""

from __future__ import annotations

import io
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from hvdtrain.streams import Output
from hvdtrain.telemetry.reports import Note
from hvdtrain.telemetry.sinks import JsonLines
from tests.launch import environment

HVDTRAIN = f"{sys.executable} -m hvdtrain"


def shell(command: str, tmp_path: Path, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "-c", command],
        cwd=tmp_path,
        env=environment(env),
        capture_output=True,
        text=True,
        errors="replace",
        timeout=120,
    )


@pytest.mark.parametrize("command", ["config reference", "metrics", "models"])
def test_a_command_whose_reader_has_seen_enough(command: str, tmp_path: Path) -> None:
    done = shell(f"{HVDTRAIN} {command} | true; echo ${{PIPESTATUS[0]}}", tmp_path)
    assert done.stdout in ("141\n", "0\n")
    said = done.stderr.splitlines()
    assert [line for line in said if not line.startswith("hvdtrain: importing torch, ")] == []


def test_a_closed_standard_error_keeps_the_exit_code(tmp_path: Path) -> None:
    done = shell(f"{HVDTRAIN} plan none.yaml 2>&-; echo $?", tmp_path)
    assert done.stdout == "2\n"
    done = shell(f"{{ {HVDTRAIN} plan none.yaml; echo $? > code; }} 2>&1 | true", tmp_path)
    assert (tmp_path / "code").read_text() == "2\n"


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp437"])
def test_a_name_that_the_terminal_cannot_show(encoding: str, tmp_path: Path) -> None:
    done = shell(f"{HVDTRAIN} plan größe-画像.yaml", tmp_path, PYTHONIOENCODING=encoding)
    assert done.returncode == 2
    assert "\\u753b" in done.stderr
    assert "internal error" not in done.stderr


class Gone(io.StringIO):
    def write(self, text: str) -> int:
        raise BrokenPipeError(32, "Broken pipe")


def test_the_reason_is_told_and_writing_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    reasons: list[str] = []
    monkeypatch.setattr(sys, "stdout", Gone())
    Output(reasons.append).write("one\n")
    assert reasons == ["Broken pipe"]


def test_characters_are_escaped_without_the_command_line_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    output = Output(pytest.fail)
    output.write("größe\n")
    output.flush()
    assert raw.getvalue() == b"gr\\xf6\\xdfe\n"


def test_events_on_a_full_disk_are_missed_with_one_note(tmp_path: Path) -> None:
    notes: list[str] = []
    path = tmp_path / "events.jsonl"
    path.symlink_to("/dev/full")
    sink = JsonLines(path, notes.append)
    for text in ("one", "two"):
        sink.write(Note(text))
    sink.close()
    [note] = notes
    assert "No space left on device; training goes on" in note


def test_a_torn_line_is_ended_before_the_next(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_text('{"kind": "no')
    sink = JsonLines(path, pytest.fail)
    sink.write(Note("next"))
    sink.close()
    torn, whole = path.read_text().splitlines()
    assert torn == '{"kind": "no'
    assert '"text": "next"' in whole


def test_a_line_is_written_in_one_piece() -> None:
    """mpirun --tag-output writes a prefix before each piece, also before a line's end."""
    reader, writer = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)  # keeps them apart
    code = "from hvdtrain.streams import print_error_line as p; p('one'); p('two')"
    child = subprocess.Popen([sys.executable, "-u", "-c", code], stderr=writer)
    writer.close()
    with reader:
        assert [reader.recv(1 << 16) for _ in range(3)] == [b"one\n", b"two\n", b""]
    assert child.wait() == 0
