"""node_exporter's text file, a push to a real HTTP server, and TensorBoard."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families
from pydantic import ValidationError

from hvdtrain.comm.ranks import Solo
from hvdtrain.config.schema import Config, Metrics, Phase
from hvdtrain.errors import ResourceError
from hvdtrain.paths import RunPaths
from hvdtrain.telemetry import outputs
from hvdtrain.telemetry.outputs import TensorBoard, TextFile
from hvdtrain.telemetry.prometheus import Exporter
from hvdtrain.telemetry.reports import Note
from hvdtrain.telemetry.sinks import Sinks
from tests.launch import free_port
from tests.made_reports import END, EVAL, TRAIN, train


class Second(Solo):
    """Rank 1 of two."""

    rank = local_rank = 1
    size = local_size = 2


def config(**metrics: Any) -> Config:
    return Config(
        name="name", phases=[Phase(epochs=1)], metrics=Metrics(port=free_port(), **metrics)
    )


def families(path: Path) -> dict[str, Metric]:
    return {family.name: family for family in text_string_to_metric_families(path.read_text())}


def test_text_file_of_each_rank(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, paths = tmp_path / "textfiles", RunPaths(tmp_path / "run-1")
    folder.mkdir()
    paths.create()
    cfg = config(textfile_dir=str(folder))
    ranks = [Sinks(cfg, comm, paths, ["a", "a"]) for comm in (Solo(), Second())]
    try:
        ranks[0].write(Note("not yet training"))
        assert not list(folder.iterdir())
        for sinks in ranks:
            sinks.write(TRAIN)
        files = [folder / f"hvdtrain_run-1_{rank}.prom" for rank in (0, 1)]
        assert sorted(folder.iterdir()) == files
        for rank, file in enumerate(files):
            found = families(file)
            [loss] = found["hvdtrain_loss"].samples
            assert (loss.value, loss.labels) == (2.5, {"run": "run-1", "rank": str(rank)})
            reasons = {s.labels["reason"] for s in found["hvdtrain_bad_samples"].samples}
            assert "truncated" in reasons
            # node_exporter has its own process_… metrics.
            assert all(name.startswith("hvdtrain_") for name in found)
            assert file.stat().st_mode & 0o777 == 0o644
    finally:
        for sinks in ranks:
            sinks.close()
    assert not list(folder.iterdir())


def test_text_file_is_written_every_15_seconds_at_most(tmp_path: Path) -> None:
    now, notes = [100.0], []
    exporter = Exporter(config(), Solo())
    labels = {"run": "r", "rank": "0"}
    try:
        sink = TextFile(tmp_path, exporter.registry, labels, notes.append, lambda: now[0])
        path = tmp_path / "hvdtrain_r_0.prom"

        def value_at(seconds: float, loss: float) -> float:
            now[0] = seconds
            report = train(loss=loss)
            exporter.write(report)
            sink.write(report)
            return families(path)["hvdtrain_loss"].samples[0].value

        assert value_at(100.0, 3.0) == 3.0
        assert value_at(114.9, 2.0) == 3.0
        assert value_at(115.0, 1.0) == 1.0
        path.unlink()
        tmp_path.rmdir()
        now[0] = 130.0
        sink.write(TRAIN)
        now[0] = 145.0
        sink.write(TRAIN)
        assert len(notes) == 1
        assert "cannot be written any more: No such file or directory" in notes[0]
        sink.close()
    finally:
        exporter.close()


def test_folder_of_node_exporter_must_exist(tmp_path: Path) -> None:
    paths = RunPaths(tmp_path / "run")
    with pytest.raises(ResourceError, match=r"^metrics\.textfile_dir: .*/none: cannot be written"):
        Sinks(config(textfile_dir=f"{tmp_path}/none"), Solo(), paths, ["a"])


class Gateway(BaseHTTPRequestHandler):
    """Keeps what is pushed; answers 200, or 400 below /bad, or not at all below /hang."""

    pushed: list[tuple[str, str, str]]
    released: threading.Event

    def do_PUT(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        self.pushed.append((self.command, self.path, body))
        if self.path.startswith("/hang"):
            self.released.wait(20)
            return
        self.send_response(400 if self.path.startswith("/bad") else 200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Silence."""


@pytest.fixture
def gateway() -> Iterator[str]:
    """Its URL."""
    Gateway.pushed, Gateway.released = [], threading.Event()
    server = HTTPServer(("127.0.0.1", 0), Gateway)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    Gateway.released.set()
    server.shutdown()
    thread.join()
    server.server_close()


def test_summary_is_pushed_at_the_end(
    gateway: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = RunPaths(tmp_path / "run-1")
    paths.create()
    sinks = Sinks(config(pushgateway=gateway), Solo(), paths, ["a"])
    sinks.write(TRAIN)
    assert Gateway.pushed == []
    sinks.write(END)
    sinks.close()
    [(method, path, body)] = Gateway.pushed
    assert (method, path) == ("PUT", "/metrics/job/hvdtrain/run/run-1")
    found = {
        family.name: family.samples[0].value for family in text_string_to_metric_families(body)
    }
    assert found == {
        "hvdtrain_final_top1_ratio": 0.75,
        "hvdtrain_final_top5_ratio": 0.95,
        "hvdtrain_final_loss": 1.25,
        "hvdtrain_final_images_per_second": 1234.5,
        "hvdtrain_final_train_seconds": 60.5,
        "hvdtrain_final_wall_seconds": 70.0,
        "hvdtrain_final_epochs": 18.0,
        "hvdtrain_final_samples": 640.0,
        "hvdtrain_final_world_size": 4.0,
    }
    assert "nothing pushed" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("where", "reason"), [("/bad", "HTTP Error 400"), ("/hang", "timed out"), (None, "refused")]
)
def test_a_failed_push_is_a_note(
    where: str | None,
    reason: str,
    gateway: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(outputs, "PUSH_TIMEOUT_S", 0.3)
    url = f"{gateway}{where}" if where else f"http://127.0.0.1:{free_port()}"
    paths = RunPaths(tmp_path)
    paths.create()
    sinks = Sinks(config(pushgateway=url), Solo(), paths, ["a"])
    sinks.write(END)
    sinks.close()
    [line] = [line for line in capsys.readouterr().out.splitlines() if "pushgateway" in line]
    assert line.startswith(f"warning: metrics.pushgateway: {url}: nothing pushed: ")
    assert reason in line
    kinds = [json.loads(line)["kind"] for line in paths.events.read_text().splitlines()]
    assert sorted(kinds) == ["end", "note"]


class Writer:
    """Replaces torch's SummaryWriter."""

    made: list[Writer]

    def __init__(self, folder: Path, *, purge_step: int, **_: object) -> None:
        self.folder, self.purge_step, self.closed = folder, purge_step, False
        self.points: list[tuple[str, float, int]] = []
        self.made.append(self)

    def add_scalar(self, name: str, value: float, step: int) -> None:
        if value == 666:
            raise OSError(28, "No space left on device")
        self.points.append((name, value, step))

    def close(self) -> None:
        self.closed = True


def test_curves_for_tensorboard(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    module = ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = Writer  # type: ignore[attr-defined]
    Writer.made = []
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    paths = RunPaths(tmp_path)
    paths.create()
    sinks = Sinks(config(tensorboard=True), Solo(), paths, ["a"])
    sinks.write(train(gradient_norm=None))
    sinks.write(EVAL)
    [writer] = Writer.made
    assert (writer.folder, writer.purge_step) == (tmp_path / "tensorboard", 20)
    assert ("train/loss", 2.5, 20) in writer.points
    assert ("eval/top1", 0.5, 40) in writer.points
    names = {name for name, _, _ in writer.points}
    assert not names & {"train/step", "train/gradient_norm", "train/explanation"}
    sinks.write(train(lr=666))
    sinks.write(TRAIN)
    out = capsys.readouterr().out
    assert out.count("no more points for TensorBoard: [Errno 28] No space left on device") == 1
    sinks.close()
    assert writer.closed


def test_tensorboard_that_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ResourceError, match=r"^metrics\.tensorboard: .*: pip install tensorboard"):
        TensorBoard(tmp_path, print)


def test_event_files_can_be_read_back(tmp_path: Path) -> None:
    accumulators = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="no tensorboard here"
    )
    sink = TensorBoard(tmp_path, pytest.fail)
    for step in (20, 40):
        sink.write(train(step=step, loss=step / 8))
    sink.close()
    events = accumulators.EventAccumulator(str(tmp_path)).Reload()
    assert [(e.step, e.value) for e in events.Scalars("train/loss")] == [(20, 2.5), (40, 5.0)]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"pushgateway": "gateway:9091"}, "expected a URL such as http://gateway:9091"),
        ({"pushgateway": "http://gateway:port"}, "expected a URL such as http://gateway:9091"),
        ({"textfile_dir": "d", "enabled": False}, "textfile_dir needs enabled: true"),
    ],
)
def test_settings_that_cannot_work(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Metrics(**wrong)
    assert Metrics(pushgateway="https://gateway.example:9091/push").pushgateway is not None
