"""A real Prometheus server finds four ranks by the file that rank 0 writes.

It shows the same values as the run, and a killed rank as down.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import pytest

from hvdtrain.comm.ranks import Solo
from hvdtrain.config.schema import Config, Metrics, Phase
from hvdtrain.engine.reducer import Reducer
from hvdtrain.paths import RunPaths
from hvdtrain.telemetry.discovery import publish, withdraw
from hvdtrain.telemetry.sinks import Sinks
from tests.launch import REPOSITORY, environment, free_port, mpirun

RANKS = 4
BATCH = 2
CONFIG = """
name: watched
data: {{train: {root}/train, val: {root}/val, augment: pad_crop, flip: false, decode_threads: 1}}
model: {{name: resnet8_gn}}
lr: {{base: 0.4, warmup_epochs: 1, schedule: cosine}}
phases: [{{epochs: 2, image_size: 16, batch_per_worker: {batch}}}]
train: {{log_every: 3}}
metrics: {{port: {port}, token_file: token}}
"""
SERVER = """
global: {{scrape_interval: 500ms, evaluation_interval: 500ms}}
rule_files: [{rules}/rules.yml, {rules}/alerts.yml]
scrape_configs:
  - job_name: hvdtrain
    {access}
    file_sd_configs: [{{files: [run/file_sd.json], refresh_interval: 500ms}}]
"""
RULES = REPOSITORY / "deploy/prometheus"
LIMIT_S = 90.0

T = TypeVar("T")


def until(what: str, look: Callable[[], T], done: Callable[[T], bool]) -> T:
    """Call `look` until `done` accepts its result; returns that."""
    deadline = time.monotonic() + LIMIT_S
    while not done(found := look()):
        assert time.monotonic() < deadline, f"{what}: {found}"
        time.sleep(0.2)
    return found


class Server:
    """The API of a Prometheus server."""

    def __init__(self, port: int) -> None:
        self._url = f"http://127.0.0.1:{port}"

    def ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self._url}/-/ready", timeout=5):
                return True
        except OSError:
            return False

    def ask(self, expression: str, at: float | None = None) -> list[dict[str, Any]]:
        """The instant vector of an expression, now or at a Unix time."""
        query = {"query": expression} | ({} if at is None else {"time": str(at)})
        url = f"{self._url}/api/v1/query?{urllib.parse.urlencode(query)}"
        with urllib.request.urlopen(url, timeout=10) as answer:
            result: list[dict[str, Any]] = json.load(answer)["data"]["result"]
        return result

    def by_rank(self, expression: str) -> dict[str, float]:
        return {s["metric"]["rank"]: float(s["value"][1]) for s in self.ask(expression)}

    def one(self, expression: str, at: float | None = None) -> float:
        [sample] = self.ask(expression, at)
        return float(sample["value"][1])


@contextlib.contextmanager
def started(command: Sequence[object], folder: Path, log: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process in its own group, which is ended with the context."""
    with (folder / log).open("wb") as file:
        process = subprocess.Popen(
            list(map(str, command)),
            cwd=folder,
            env=environment(),
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGCONT)
                os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


@pytest.fixture
def folder(small_root: Path, tmp_path: Path) -> Path:
    """A folder with everything that the run and the server read."""
    (tmp_path / "token").write_text("a token of the test\n".replace(" ", "-"))
    (tmp_path / "token").chmod(0o600)
    (tmp_path / "small.yaml").write_text(
        CONFIG.format(root=small_root, port=free_port(), batch=BATCH)
    )
    return tmp_path


@contextlib.contextmanager
def served(folder: Path, prometheus_bin: Path, access: str) -> Iterator[Server]:
    """A server that reads `run/file_sd.json`; `access` is the setting by which ranks admit it."""
    (folder / "prometheus.yml").write_text(SERVER.format(rules=RULES, access=access))
    port = free_port()
    command = [
        prometheus_bin / "prometheus",
        f"--config.file={folder}/prometheus.yml",
        f"--storage.tsdb.path={folder}/tsdb",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    with started(command, folder, "prometheus.log"):
        made = Server(port)
        until("the server", made.ready, bool)
        yield made


@pytest.fixture
def ranks(folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """mpirun with four ranks, which are killed at the end by the pids that they wrote."""
    worker = Path(__file__).with_name("held_worker.py")
    command = mpirun(RANKS, sys.executable, worker, "small.yaml")
    with started(command, folder, "ranks.log") as process:
        yield process
        for path in folder.glob("pid-*"):
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(path.read_text()), signal.SIGKILL)


def reported(folder: Path, kind: str) -> list[dict[str, Any]]:
    """All events of one kind that the run wrote."""
    events = map(json.loads, (folder / "run/events.jsonl").read_text().splitlines())
    return [event for event in events if event["kind"] == kind]


def test_a_real_server_watches_four_ranks(
    folder: Path, prometheus_bin: Path, ranks: subprocess.Popen[bytes]
) -> None:
    with served(folder, prometheus_bin, "authorization: {credentials_file: token}") as server:
        watch(server, folder, ranks)


def watch(server: Server, folder: Path, ranks: subprocess.Popen[bytes]) -> None:
    """Watch the ranks from their start until one is killed."""

    def alive() -> dict[str, float]:
        assert ranks.poll() is None, (folder / "ranks.log").read_text()
        return server.by_rank("up")

    everybody = [str(rank) for rank in range(RANKS)]
    until("four ranks", alive, lambda found: found == dict.fromkeys(everybody, 1.0))
    labels = {s["metric"]["rank"]: s["metric"] for s in server.ask("up")}
    for rank in everybody:
        assert labels[rank]["run"] == "run"
        assert labels[rank]["local_rank"] == rank
        assert labels[rank]["host"]
    (folder / "go").touch()
    until("the summary", (folder / "run/summary.json").exists, lambda done: done or not alive())
    summary = json.loads((folder / "run/summary.json").read_text())
    same_for_all(server, summary, folder)
    of_each(server, summary)

    # mpirun would kill the other ranks, too: it is stopped while one rank dies.
    os.kill(ranks.pid, signal.SIGSTOP)
    os.kill(int((folder / "pid-2").read_text()), signal.SIGKILL)
    until("one rank down", alive, lambda found: found["2"] == 0.0)
    assert alive() == {"0": 1.0, "1": 1.0, "2": 0.0, "3": 1.0}
    [alert] = until("the alert", lambda: server.ask('ALERTS{alertname="HvdtrainRankDown"}'), bool)
    assert alert["metric"]["rank"] == "2"
    assert (folder / "run/file_sd.json").exists()  # not an orderly end


def test_a_real_server_shows_its_certificate(
    tmp_path: Path, prometheus_bin: Path, certificates: Path
) -> None:
    files = {"tls_cert": "server.pem", "tls_key": "server.key", "tls_client_ca": "ca.pem"}
    guard: dict[str, Any] = {key: f"{certificates}/{name}" for key, name in files.items()}
    metrics = Metrics(port=free_port(), bind="127.0.0.1", **guard)
    cfg = Config(phases=[Phase(epochs=1)], metrics=metrics)
    paths = RunPaths(tmp_path / "run")
    paths.create()
    with contextlib.closing(Sinks(cfg, Solo(), paths, ["a"])) as sinks:
        publish(cfg.metrics, Solo(), paths, sinks)
        sinks.observe_step(0.5, 7, 0.0, Reducer([], Solo()))
        for name, up in (("client", 1.0), ("stranger", 0.0)):
            client = f"cert_file: {certificates}/{name}.pem, key_file: {certificates}/{name}.key"
            access = f"tls_config: {{ca_file: {certificates}/ca.pem, {client}}}"
            with served(tmp_path, prometheus_bin, access) as server:
                found = until(name, lambda s=server: s.by_rank("up"), bool)  # type: ignore[misc]
                assert found == {"0": up}, name
                assert server.by_rank("hvdtrain_samples_total") == ({"0": 7.0} if up else {})
            shutil.rmtree(tmp_path / "tsdb")
        withdraw(cfg.metrics, Solo(), paths)


def same_for_all(server: Server, summary: dict[str, Any], folder: Path) -> None:
    """Compare metrics that are equal on all ranks with the events and the summary of the run."""
    for event in reported(folder, "train"):
        left = summary["samples"] - event["total_samples"]
        assert event["eta_s"] == pytest.approx(left / event["images_per_second"])
        assert event["progress"] == pytest.approx(event["total_samples"] / summary["samples"])
    [*_, train], [*_, evaluation] = reported(folder, "train"), reported(folder, "eval")
    for name, expected in {
        "hvdtrain_run_samples": summary["samples"],
        "hvdtrain_run_steps": summary["steps"],
        "hvdtrain_val_top1_ratio": summary["top1"],
        "hvdtrain_val_loss": summary["loss"],
        "hvdtrain_epochs": summary["epochs"],
        "hvdtrain_progress_ratio": 1.0,
        "hvdtrain_eta_seconds": 0.0,
        "hvdtrain_loss": train["loss"],
        "hvdtrain_learning_rate": train["lr"],
        "hvdtrain_momentum": 0.9,
        "hvdtrain_images_per_second": train["images_per_second"],
        "hvdtrain_scaling_efficiency_ratio": train["efficiency"],
        "hvdtrain_run_scaling_efficiency_ratio": summary["scaling_efficiency"],
        "hvdtrain_lost_communication_ratio": train["lost_communication_ratio"],
        "hvdtrain_batch_images": BATCH,
        "hvdtrain_global_batch_images": BATCH * RANKS,
        "hvdtrain_val_epoch": evaluation["epoch"],
    }.items():
        by_rank = {str(rank): float(expected) for rank in range(RANKS)}
        until(name, lambda n=name: server.by_rank(n), lambda found, r=by_rank: found == r)  # type: ignore[misc]
    saved = reported(folder, "checkpoint")[-1]
    for name, value, near in (
        ("bytes", saved["bytes"], 0.0),
        ("write_seconds", saved["seconds"], 0.0),
        ("timestamp_seconds", saved["time"], 1.0),
    ):
        until(
            name,
            lambda n=name: server.by_rank(f"hvdtrain_checkpoint_{n}"),  # type: ignore[misc]
            lambda found, v=value, a=near: found == {"0": pytest.approx(v, abs=a)},  # type: ignore[misc]
        )


def of_each(server: Server, summary: dict[str, Any]) -> None:
    """Compare what each rank counts with the summary, and the rules made of it."""
    steps = server.by_rank("hvdtrain_steps_total")
    assert steps == dict.fromkeys(steps, float(summary["steps"]))
    assert len(steps) == RANKS
    total = server.one("sum(hvdtrain_samples_total)")
    assert (
        total == summary["steps"] * BATCH * RANKS
    )  # padding of the last batch of an epoch included
    assert server.one("sum(hvdtrain_allreduce_bytes_total)") > 0

    rule, expression = (
        "run:hvdtrain_samples:rate1m",
        "sum by (run) (rate(hvdtrain_samples_total[1m]))",
    )
    found = until("the rule", lambda: server.ask(rule), bool)
    assert found[0]["metric"]["run"] == "run"

    def both() -> list[float]:
        """Values of the rule's last evaluation. A scrape that began before it may be stored after it."""
        written = server.one(f"timestamp({rule})")
        return [server.one(each, at=written) for each in (rule, expression)]

    until("the rule's value", both, lambda found: found[0] == pytest.approx(found[1]))
    # All images were used after the first scrape. It may be more than a minute ago.
    peak = f"max_over_time({rule}[5m])"
    until(peak, lambda: server.one(peak), lambda found: found >= 0.999 * total / 60)
