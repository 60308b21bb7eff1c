"""A real MLflow server with its database: down, lost and back, and runs that are resumed."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from hvdtrain.comm.ranks import Solo
from hvdtrain.config.schema import Config, Metrics, Phase
from hvdtrain.paths import RunPaths
from hvdtrain.telemetry.reports import Note, Report, Start, Stop
from hvdtrain.telemetry.sinks import Sinks
from hvdtrain.telemetry.trackers import sink
from tests.launch import free_port
from tests.made_reports import END, EVAL, train

NEEDED = ("mlflow", "sqlalchemy", "alembic", "flask_cors", "graphene", "gunicorn")
MISSING = [name for name in NEEDED if find_spec(name) is None]
pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"not installed here: {', '.join(MISSING)}")
START = Start(1, 1, 3.5)
LIMIT_S = 300.0


class Server:
    """An MLflow server on this machine; what it was told outlives it."""

    def __init__(self, root: Path) -> None:
        self.root, self.port = root, free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        store = f"sqlite:///{self.root}/mlflow.db"
        options = ["--host", "127.0.0.1", "--port", str(self.port), "--workers", "1"]
        options += [
            "--artifacts-destination",
            f"{self.root}/artifacts",
            "--gunicorn-opts",
            "-t 300",
        ]
        quiet = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
        with (self.root / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", store, *options],
                env={**os.environ, **quiet, "HOME": str(self.root)},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        wait_for(self.answers)

    def stop(self) -> None:
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    def answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/health", timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            assert self.process is None or self.process.poll() is None, (
                self.root / "log"
            ).read_text()
            return False

    def rows(self, query: str) -> list[Any]:
        with sqlite3.connect(f"file:{self.root}/mlflow.db?mode=ro", uri=True) as database:
            return database.execute(query).fetchall()

    def steps(self, key: str, run_id: str) -> list[int]:
        query = (
            f"SELECT step FROM metrics WHERE key = '{key}' AND run_uuid = '{run_id}' ORDER BY step"
        )
        return [step for (step,) in self.rows(query)]


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.2)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    made = Server(tmp_path_factory.mktemp("mlflow"))
    yield made
    made.stop()


class Attempt:
    """The sinks of rank 0."""

    def __init__(self, root: Path, seed: int = 1) -> None:
        self.paths = RunPaths(root)
        self.paths.create()
        metrics = Metrics(enabled=False, mlflow="digits")
        cfg = Config(phases=[Phase(epochs=1)], metrics=metrics, seed=seed)
        self.sinks = Sinks(cfg, Solo(), self.paths, ["a"])
        self.write(START)

    def write(self, *reports: Report) -> None:
        for report in reports:
            self.sinks.write(report)

    def says(self, text: str) -> bool:
        """Whether a note with `text` is in the log by now."""
        for tracker in self.sinks._sinks:
            if isinstance(tracker, sink.Tracker) and tracker._process:
                tracker._exchange()
        return text in self.paths.events.read_text()

    def run_id(self) -> str:
        return (self.paths.root / "mlflow.id").read_text().strip()


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch, server: Server) -> None:
    """Attempts have the server's address, wait for it at the end, and try again after a moment."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.url)
    monkeypatch.setattr(sink, "WORKER", "tests.tracker_worker")
    monkeypatch.setattr(sink.Tracker.__init__, "__defaults__", (LIMIT_S,))
    monkeypatch.setattr(sink, "STOP_S", LIMIT_S)


@pytest.mark.usefixtures("patient")
def test_a_server_that_is_down_comes_and_goes_and_is_back(server: Server, tmp_path: Path) -> None:
    attempt = Attempt(tmp_path / "run-1")
    attempt.write(train(step=20))
    wait_for(lambda: attempt.says("training goes on, and it is tried again"))
    server.start()
    wait_for((attempt.paths.root / "mlflow.id").exists)
    run_id = attempt.run_id()
    wait_for(lambda: server.steps("train/loss", run_id) == [20])
    server.stop()
    attempt.write(train(step=40), Note("a path"))
    server.start()
    attempt.write(train(step=60), END)
    attempt.sinks.close()
    assert server.steps("train/loss", run_id) == [20, 40, 60]
    assert server.rows(f"SELECT status FROM runs WHERE run_uuid = '{run_id}'") == [("FINISHED",)]
    events = attempt.paths.events.read_text()
    assert events.count("tried again") == 1
    assert "missing" not in events


@pytest.mark.usefixtures("patient")
def test_a_resumed_run_goes_on_in_the_same_run(server: Server, tmp_path: Path) -> None:
    if not server.answers():
        server.start()
    first = Attempt(tmp_path / "run-2")
    first.write(train(step=20), Stop("signal", 20))
    first.sinks.close()
    run_id = first.run_id()
    [row] = server.rows(f"SELECT status, name FROM runs WHERE run_uuid = '{run_id}'")
    assert row == ("KILLED", "run-2")
    second = Attempt(tmp_path / "run-2", seed=2)
    second.write(train(step=40), EVAL, END)
    (tmp_path / "run-2/report.html").write_text("the page")
    second.sinks.close()
    assert second.run_id() == run_id
    assert server.rows("SELECT COUNT(*) FROM runs WHERE name = 'run-2'") == [(1,)]
    assert server.rows(f"SELECT status FROM runs WHERE run_uuid = '{run_id}'") == [("FINISHED",)]
    assert server.steps("train/loss", run_id) == [20, 40]
    assert server.steps("eval/top1", run_id) == [40]
    assert server.steps("end/top1", run_id) == [20]
    params = dict(server.rows(f"SELECT key, value FROM params WHERE run_uuid = '{run_id}'"))
    assert (params["seed"], params["phases.0.epochs"]) == ("1", "1")
    assert not [key for key in params if key.startswith("metrics.")]
    tags = dict(server.rows(f"SELECT key, value FROM tags WHERE run_uuid = '{run_id}'"))
    assert {key: tags[key] for key in tags if key.startswith("changed.")} == {"changed.seed": "2"}
    [page] = (server.root / "artifacts").rglob("report.html")
    assert page.read_text() == "the page"
    assert "warning" not in second.paths.events.read_text()


@pytest.mark.usefixtures("patient")
def test_a_run_that_the_server_does_not_know_begins_anew(server: Server, tmp_path: Path) -> None:
    if not server.answers():
        server.start()
    (tmp_path / "run-3").mkdir()
    (tmp_path / "run-3/mlflow.id").write_text("0123456789abcdef0123456789abcdef\n")
    attempt = Attempt(tmp_path / "run-3")
    attempt.write(train(step=20), END)
    attempt.sinks.close()
    assert server.steps("train/loss", attempt.run_id()) == [20]
    assert "is not there any more: a new one begins" in attempt.paths.events.read_text()
