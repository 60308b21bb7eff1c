"""The progress that Kubeflow Trainer takes, sent to a real HTTPS server."""

from __future__ import annotations

import json
import ssl
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from hvdtrain.comm.ranks import Solo
from hvdtrain.config.schema import Config, Metrics, Phase
from hvdtrain.errors import ResourceError
from hvdtrain.paths import RunPaths
from hvdtrain.telemetry.reports import Start, Stop
from hvdtrain.telemetry.sinks import Sinks
from hvdtrain.telemetry.trackers import kubeflow, sink
from hvdtrain.telemetry.trackers.kubeflow import KubeflowStatus
from hvdtrain.telemetry.trackers.sink import record
from hvdtrain.telemetry.trackers.worker import About, Record
from tests.made_reports import END, EVAL, TRAIN, train

STATUS_PATH = "/apis/trainer.kubeflow.org/v1alpha1/namespaces/team/trainjobs/digits/status"


class Server:
    """Takes what the controller of Kubeflow Trainer takes."""

    def __init__(self, certificates: Path) -> None:
        self.taken: list[tuple[str, str | None, dict[str, Any]]] = []
        self.answer, self.location = 200, ""
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                outer.taken.append((self.path, self.headers["Authorization"], body))
                self.send_response(outer.answer)
                if outer.location:
                    self.send_header("Location", outer.location)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_args: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificates / "server.pem", certificates / "server.key")
        self.http.socket = context.wrap_socket(self.http.socket, server_side=True)
        self.url = f"https://127.0.0.1:{self.http.server_address[1]}{STATUS_PATH}"


@pytest.fixture
def server(certificates: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """Running, and named by the variables; the token is in `tmp_path/token`."""
    made = Server(certificates)
    (tmp_path / "token").write_text("first\n")
    monkeypatch.setenv(kubeflow.URL, made.url)
    monkeypatch.setenv(kubeflow.CA_FILE, str(certificates / "ca.pem"))
    monkeypatch.setenv(kubeflow.TOKEN_FILE, str(tmp_path / "token"))
    thread = threading.Thread(target=made.http.serve_forever, args=(0.05,))
    thread.start()
    yield made
    made.http.shutdown()
    thread.join()
    made.http.server_close()


def status_of(tell: Callable[[str], None] = pytest.fail) -> KubeflowStatus:
    return KubeflowStatus(About("run-1", ".", "host", {}, "1"), tell)


def made(report: Any) -> Record:
    return Record(**record(report))


def test_progress_of_a_run(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kubeflow, "INTERVAL_S", 0.0)
    status = status_of()
    status.open()
    status.log(made(TRAIN))
    (tmp_path / "token").write_text("second\n")  # Kubernetes renews it
    status.log(made(EVAL))
    status.log(made(END))
    status.finish("complete", None)
    assert [(path, token) for path, token, _ in server.taken] == [
        (STATUS_PATH, "Bearer first"),
        *[(STATUS_PATH, "Bearer second")] * 3,
    ]
    first, _, _, last = [body["trainerStatus"] for _, _, body in server.taken]
    assert (first["progressPercentage"], first["estimatedRemainingSeconds"]) == (50, 312)
    assert {"name": "train/loss", "value": "2.5"} in first["metrics"]
    assert first["lastUpdatedTime"].endswith("Z")
    assert (last["progressPercentage"], last["estimatedRemainingSeconds"]) == (100, 0)
    assert {"name": "eval/top1", "value": "0.5"} in last["metrics"]


def test_bounds_of_the_type(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its fields are of 32 bits, names and values have at most 64 characters, and metrics are 256."""
    status = status_of()
    odd = {f"train/{i}": 1e308 for i in range(300)} | {"train/" + "x" * 64: 1.0}
    status.log(Record("train", 0.0, 1, {**odd, "train/progress": 1.5, "train/eta_s": 1e300}))
    [(_, _, body)] = server.taken
    found = body["trainerStatus"]
    assert found["progressPercentage"] == 100
    assert found["estimatedRemainingSeconds"] == 2**31 - 1
    assert len(found["metrics"]) == 256
    assert all(len(one["name"]) <= 64 and len(one["value"]) <= 64 for one in found["metrics"])
    assert len(json.dumps(body)) < 2**16  # the server takes no more


def test_not_more_often_than_every_five_seconds(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kubeflow, "INTERVAL_S", 3600.0)
    status = status_of()
    for step in (20, 40, 60):
        status.log(made(train(step=step, loss=step / 8)))
    status.finish("stopped", None)
    bodies = [body["trainerStatus"] for _, _, body in server.taken]
    assert len(bodies) == 2
    assert bodies[1]["progressPercentage"] == 50
    assert {"name": "train/loss", "value": "7.5"} in bodies[1]["metrics"]


@pytest.mark.parametrize(
    ("answer", "message"), [(403, "127.0.0.1 answered 403 Forbidden"), (307, "answered 307")]
)
def test_a_server_that_refuses(server: Server, answer: int, message: str) -> None:
    """A redirection is not followed: the token is for one server."""
    server.answer, server.location = answer, server.url if answer == 307 else ""
    with pytest.raises(ResourceError, match=message):
        status_of().log(made(TRAIN))
    assert len(server.taken) == 1


def test_the_token_goes_to_nobody_else(
    server: Server, certificates: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(kubeflow.CA_FILE, str(certificates / "stranger.pem"))
    with pytest.raises(ssl.SSLCertVerificationError):
        status_of().log(made(TRAIN))
    monkeypatch.delenv(kubeflow.CA_FILE)
    with pytest.raises(ResourceError, match="KUBEFLOW_TRAINER_SERVER_CA_CERT is not set"):
        status_of().log(made(TRAIN))
    monkeypatch.setenv(kubeflow.URL, server.url.replace("https", "http"))
    with pytest.raises(ResourceError, match="expected an address with https://"):
        status_of()
    assert not server.taken


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine has time enough at the end."""
    monkeypatch.setattr(sink.Tracker.__init__, "__defaults__", (250.0,))
    monkeypatch.setattr(sink, "STOP_S", 250.0)


def run_on(paths: RunPaths, *reports: Any) -> None:
    paths.create()
    cfg = Config(phases=[Phase(epochs=1)], metrics=Metrics(enabled=False))
    sinks = Sinks(cfg, Solo(), paths, ["a"])
    for report in (Start(1, 1, 1.0), *reports):
        sinks.write(report)
    sinks.close()


@pytest.mark.usefixtures("patient")
def test_the_variables_are_enough(server: Server, tmp_path: Path) -> None:
    """All the way from the sinks of a run, through the process that sends."""
    run_on(RunPaths(tmp_path / "run"), TRAIN, EVAL, END)
    assert server.taken[-1][2]["trainerStatus"]["progressPercentage"] == 100
    events = (tmp_path / "run/events.jsonl").read_text()
    assert "Kubeflow Trainer: the numbers of this run go to 127.0.0.1" in events
    assert "first" not in events


@pytest.mark.usefixtures("patient")
def test_a_refusal_is_one_note(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.answer = 403
    run_on(RunPaths(tmp_path / "run"), TRAIN, EVAL, Stop("signal", 40))
    out = capsys.readouterr().out
    assert "warning: Kubeflow Trainer: 127.0.0.1 answered 403 Forbidden" in " ".join(out.split())
