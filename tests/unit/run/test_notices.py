"""A stop that is announced by a file, a URL, or Slurm's time limit."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from hvdtrain.run.notices import MARGIN_S, Notices, TimeLimit, announced, seconds
from tests.launch import free_port


class Metadata(BaseHTTPRequestHandler):
    """Answers as clouds' metadata servers do."""

    answers: dict[str, tuple[int, str]]
    """Path → code and text."""
    needs_token = False

    def do_GET(self) -> None:
        if self.needs_token and self.headers.get("X-aws-ec2-metadata-token") != "t0ken":
            self._send(401, "")
        elif "computeMetadata" in self.path and self.headers.get("Metadata-Flavor") != "Google":
            self._send(403, "")
        else:
            self._send(*self.answers.get(self.path, (404, "not found")))

    def do_PUT(self) -> None:
        known = self.path == "/latest/api/token" and self.headers.get(
            "X-aws-ec2-metadata-token-ttl-seconds"
        )
        self._send(*((200, "t0ken") if known else (400, "")))

    def _send(self, code: int, text: str) -> None:
        self.send_response(code)
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[tuple[type[Metadata], str]]:
    handler = type("Handler", (Metadata,), {"answers": {}})
    with ThreadingHTTPServer(("127.0.0.1", free_port()), handler) as http:
        thread = threading.Thread(target=http.serve_forever, args=(0.05,))
        thread.start()
        yield handler, f"http://127.0.0.1:{http.server_port}"
        http.shutdown()
        thread.join()


def test_a_file(tmp_path: Path) -> None:
    file = tmp_path / "stop"
    _, look = announced(str(file))
    assert look() is None
    file.touch()
    assert look() == f"{file} is there"


def test_a_file_that_cannot_be_looked_at(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    _, look = announced(str(tmp_path / "file/stop"))
    with pytest.raises(OSError, match="Not a directory"):
        look()


@pytest.mark.parametrize("needs_token", [False, True])
def test_aws(server: tuple[type[Metadata], str], needs_token: bool) -> None:
    handler, address = server
    handler.needs_token = needs_token
    path = "/latest/meta-data/spot/instance-action"
    _, look = announced(address + path)
    assert look() is None
    handler.answers[path] = (200, '{"action": "terminate", "time": "2026-09-18T08:22:00Z"}')
    assert look() == f"{address}{path} announces it"


def test_google_cloud(server: tuple[type[Metadata], str]) -> None:
    handler, address = server
    path = "/computeMetadata/v1/instance/preempted"
    _, look = announced(address + path)
    handler.answers[path] = (200, "FALSE")
    assert look() is None
    handler.answers[path] = (200, "TRUE\n")
    assert look() == f"{address}{path} announces it"


def test_a_url_that_does_not_answer_is_told_once_and_asked_again(
    server: tuple[type[Metadata], str],
) -> None:
    handler, address = server
    handler.answers["/notice"] = (500, "")
    said: list[str] = []
    _, look = announced(f"{address}/notice")
    notices = Notices([(0.01, look)], said.append)
    while not said:
        time.sleep(0.01)
    assert notices.cause() is None
    handler.answers["/notice"] = (200, "soon")
    while notices.cause() is None:
        time.sleep(0.01)
    notices.close()
    text = f"warning: train.stop_when: {address}/notice: expected 200 or 404, found 500"
    assert said == [f"{text}; looked for again every 0.01 s"]


def test_nobody_listens() -> None:
    _, look = announced(f"http://127.0.0.1:{free_port()}/notice")
    with pytest.raises(OSError, match=r"no answer \(\[Errno 111\] Connection refused\)"):
        look()


@pytest.fixture
def squeue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file with the time that is left, which `squeue` prints."""
    left = tmp_path / "left"
    program = tmp_path / "squeue"
    program.write_text(f'#!/bin/sh\n[ "$3" = 7 ] && cat {left}\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    return left


@pytest.mark.parametrize("told", [True, False])
def test_the_time_limit(squeue: Path, told: bool) -> None:
    """It is met early enough for a checkpoint, unless it is extended meanwhile."""
    now, save_s = 1_000_000.0, 0.0
    env = {"SLURM_JOB_ID": "7"} | ({"SLURM_JOB_END_TIME": "1000600"} if told else {})
    squeue.write_text("10:00\n")
    limit = TimeLimit(env, lambda: save_s, lambda: now)
    assert limit.end == 1_000_600
    assert f"in order {MARGIN_S:.0f} s before" in limit.text()
    squeue.write_text("59\n")  # no form of Slurm's: the end stays
    now = 1_000_600 - MARGIN_S - 1
    assert limit.look() is None
    save_s = 5.0
    squeue.write_text("30:00\n")
    assert limit.look() is None
    assert limit.end == now + 1800
    now = limit.end - MARGIN_S - 14
    squeue.write_text("1:14\n")
    assert limit.look() == "Slurm's time limit is near"


def test_no_time_limit(squeue: Path) -> None:
    for left in ("UNLIMITED", "INVALID", ""):
        squeue.write_text(left)
        assert TimeLimit({"SLURM_JOB_ID": "7"}, float).end is None
    assert TimeLimit({"SLURM_JOB_ID": "7", "SLURM_JOB_END_TIME": "4294967294"}, float).end is None


def test_forms_of_a_time() -> None:
    assert seconds("3:04") == 184
    assert seconds("2:03:04") == 7384
    assert seconds("1-02:03:04") == 93784
    assert seconds("NOT_SET") is None
