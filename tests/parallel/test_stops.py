"""A signal to any launcher's documented command leaves a checkpoint and the documented exit code."""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import json
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest

from hvdtrain.comm.ranks import Solo
from hvdtrain.config.load import load_config
from hvdtrain.train import train
from tests.launch import BIN, USUAL_SIGNALS, end_jobs, environment, free_port, mpirun, run

TRAIN = [str(BIN / "hvdtrain"), "train"]
CONFIG = """
name: stops
data: {{train: {root}/train, val: {root}/val, augment: pad_crop, decode_threads: 1}}
model: {{name: resnet8_gn}}
lr: {{base: 0.02, warmup: none, schedule: constant}}
phases: [{{epochs: 500, image_size: 16, batch_per_worker: 32}}]
train: {{log_every: 100000, evaluate_every: 1000}}
metrics: {{port: {port}}}
"""
LAUNCH = [str(BIN / "hvdtrain"), "launch", "--hosts", "localhost:2"]
COMMANDS = {
    "alone": TRAIN,
    "mpirun": ["mpirun", "-np", "2", *TRAIN],
    "horovodrun": ["horovodrun", "-np", "2", *TRAIN],
    "launch": [*LAUNCH, "--", "train"],
}
SIGNALS = [*itertools.product(COMMANDS, (signal.SIGINT, signal.SIGTERM, signal.SIGHUP))]
COMMANDS["by horovodrun"] = [*LAUNCH, "--launcher=horovodrun", "--", "train"]
SIGNALS.append(("by horovodrun", signal.SIGINT))


@pytest.fixture
def config(digits_root: Path, tmp_path: Path) -> Path:
    path = tmp_path / "stops.yaml"
    path.write_text(CONFIG.format(root=digits_root, port=free_port()))
    return path


@pytest.fixture
def jobs() -> Iterator[list[subprocess.Popen[str]]]:
    started: list[subprocess.Popen[str]] = []
    yield started
    end_jobs(started)


def started(
    words: list[str], config: Path, jobs: list[subprocess.Popen[str]], *more: str
) -> subprocess.Popen[str]:
    """Start a training."""
    job = subprocess.Popen(
        [*USUAL_SIGNALS, *words, str(config), "--run-dir", "run", *more],
        cwd=config.parent,
        env=environment({"OMPI_MCA_odls_base_sigkill_timeout": "3"}),  # as `make setup` sets it
        text=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    jobs.append(job)
    return job


def start(
    words: list[str], config: Path, jobs: list[subprocess.Popen[str]], *more: str
) -> subprocess.Popen[str]:
    """Start a training, and return once it has trained for an epoch."""
    job = started(words, config, jobs, *more)
    events, deadline = config.parent / "run/events.jsonl", time.monotonic() + 120
    while not events.exists() or '"kind": "train"' not in events.read_text():
        assert job.poll() is None, job.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return job


def read_events(config: Path) -> list[dict[str, Any]]:
    lines = (config.parent / "run/events.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def kinds(config: Path) -> list[str]:
    return [event["kind"] for event in read_events(config)]


@pytest.mark.parametrize(("launcher", "number"), SIGNALS)
def test_a_signal_to_the_command(
    launcher: str, number: signal.Signals, config: Path, jobs: list[subprocess.Popen[str]]
) -> None:
    job = start(COMMANDS[launcher], config, jobs)
    everyone = psutil.Process(job.pid).children(recursive=True)
    # horovodrun becomes a shell that waits for mpirun; a terminal signals both
    (os.killpg if launcher == "horovodrun" else os.kill)(job.pid, number)
    out, _ = job.communicate(timeout=60)
    assert "Traceback" not in out or launcher == "horovodrun", out
    assert kinds(config)[-2:] == ["checkpoint", "stop"]
    saved = [event["path"] for event in read_events(config) if event["kind"] == "checkpoint"]
    assert (config.parent / saved[-1]).exists()
    if launcher not in ("mpirun", "horovodrun"):
        assert job.returncode == 75, out
        assert out.count("stopping after this step") == 1
    else:  # mpirun's own code when it is interrupted
        assert job.returncode != 0, out
    _, alive = psutil.wait_procs(everyone, timeout=30)
    assert alive == []


def test_ctrl_c_in_a_terminal_of_80_columns(config: Path) -> None:
    """The bar fits on every redraw, and a Ctrl-C leaves a checkpoint, code 75 and the cursor."""
    terminal, inside = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    words = [*COMMANDS["launch"], str(config), "--run-dir", "run", "train.log_every=1"]
    job = subprocess.Popen(
        ["setsid", "--ctty", *words],
        cwd=config.parent,
        env=environment({"TERM": "xterm"}),
        stdin=inside,
        stdout=inside,
        stderr=inside,
    )
    os.close(inside)
    shown = b""
    with contextlib.suppress(OSError):  # EIO: the last process has closed the terminal
        while text := os.read(terminal, 1 << 16):
            if b"epoch 2" in shown and b"\x03" not in shown:
                os.write(terminal, b"\x03")
                shown += b"\x03"
            shown += text
    assert job.wait(timeout=60) == 75, shown
    os.close(terminal)
    assert kinds(config)[-2:] == ["checkpoint", "stop"]
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode())
    bars = [
        line for line in re.split(r"[\r\n]+", plain) if "%  " in line and "evaluated" not in line
    ]
    assert len(bars) > 3
    assert max(len(re.sub(r"\^C|\x03", "", bar)) for bar in bars) < 80, bars
    assert "continue with --resume run" in plain.splitlines()[-1]
    assert shown.count(b"\x1b[?25l") == shown.count(b"\x1b[?25h") == 1


@pytest.mark.parametrize("words", [TRAIN, ["mpirun", "-np", "2", *TRAIN]])
def test_a_stop_during_evaluation_leaves_the_evaluation_to_the_next_attempt(
    words: list[str], config: Path, jobs: list[subprocess.Popen[str]]
) -> None:
    """Evaluation of many one-image batches is most of the time here."""
    slow = ["phases.0.batch_per_worker=1", "train.evaluate_every=1", "data.shuffle=full"]
    slow += [f"data.train={config.parent}/few"]
    few = config.parent / "few"
    root = load_config(str(config), []).data.train
    for name in map(str, range(10)):
        (few / name).mkdir(parents=True)
        image = min((Path(str(root)) / name).iterdir())
        (few / name / image.name).write_bytes(image.read_bytes())
    job = start(words, config, jobs, *slow)
    time.sleep(1)
    for rank in [p for p in psutil.Process(job.pid).children() if "train" in p.cmdline()] or [job]:
        os.kill(rank.pid, signal.SIGUSR1)
    out, _ = job.communicate(timeout=60)
    assert job.returncode == 75, out
    before = [kind for kind in kinds(config) if kind in ("train", "eval")]
    epochs = len([kind for kind in before if kind == "train"])
    done = run(
        [*words, str(config), "--resume", "run", *slow, f"phases.0.epochs={epochs + 2}"],
        cwd=config.parent,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    events = (config.parent / "run/events.jsonl").read_text().splitlines()
    evals = [json.loads(line)["epoch"] for line in events if '"kind": "eval"' in line]
    assert evals == [float(epoch) for epoch in range(1, epochs + 3)]


def test_a_file_that_appears(config: Path, jobs: list[subprocess.Popen[str]]) -> None:
    """`train.stop_when` on two ranks: one line at once, a checkpoint, code 75."""
    notice = config.parent / "notice"
    job = start(["mpirun", "-np", "2", *TRAIN], config, jobs, f"train.stop_when={notice}")
    notice.touch()
    out, _ = job.communicate(timeout=60)
    assert job.returncode == 75, out
    assert kinds(config)[-2:] == ["checkpoint", "stop"]
    assert out.count(f"{notice} is there: stopping after this step") == 1
    assert f"stopped as {notice} is there at epoch" in out


@pytest.mark.parametrize(
    ("number", "begun"), [(signal.SIGINT, False), (signal.SIGINT, True), (signal.SIGTERM, True)]
)
def test_a_signal_before_training(
    number: signal.Signals, begun: bool, config: Path, jobs: list[subprocess.Popen[str]]
) -> None:
    """While the command imports, or when the run directory is there: one line, and no directory is left."""
    job = started(TRAIN, config, jobs)
    stage = Path(f"/proc/{job.pid}/maps") if not begun else config.parent / "run"
    while not (stage.exists() if begun else "pydantic" in stage.read_text()):
        assert job.poll() is None
        time.sleep(0.01)
    job.send_signal(number)
    out, _ = job.communicate(timeout=60)
    lines = [line for line in out.splitlines() if "ended by" in line or "rror" in line]
    assert job.returncode in (128 + number, -number), out  # a shell shows both as the same
    assert "Traceback" not in out
    assert len(lines) == 1 if begun else len(lines) <= 1, out
    assert not (config.parent / "run").exists()


def test_ranks_do_not_outlive_a_killed_launcher(
    config: Path, jobs: list[subprocess.Popen[str]]
) -> None:
    job = start(["mpirun", "-np", "2", *TRAIN], config, jobs)
    ranks = psutil.Process(job.pid).children(recursive=True)
    job.kill()
    _, alive = psutil.wait_procs(ranks, timeout=60)
    assert alive == []


@pytest.mark.parametrize("launcher", ["alone", "launch"])  # mpirun aborts at the tenth SIGPIPE
def test_a_reader_that_goes_away(
    launcher: str, config: Path, jobs: list[subprocess.Popen[str]]
) -> None:
    job = start(COMMANDS[launcher], config, jobs, "phases.0.epochs=4", "train.log_every=1")
    assert job.stdout is not None
    job.stdout.close()
    assert job.wait(timeout=180) == 0
    assert (config.parent / "run/summary.json").exists()
    assert kinds(config)[-1] == "end"


CLOSING = """
import os, signal, sys
from hvdtrain.cli.main import main
from hvdtrain.run.prepare import Run
close = Run.close
def closed(run):
    os.kill(os.getpid(), signal.SIGUSR1)
    close(run)
Run.close = closed
main()
"""


def test_a_signal_repeated_while_the_run_closes(
    config: Path, jobs: list[subprocess.Popen[str]]
) -> None:
    """On a busy host a batch script's signal reaches a rank long after the launcher's."""
    (config.parent / "closing.py").write_text(CLOSING)
    job = start([sys.executable, "closing.py", "train"], config, jobs)
    job.send_signal(signal.SIGTERM)
    out, _ = job.communicate(timeout=60)
    assert job.returncode == 75, out


def test_training_in_a_thread(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the main thread can handle signals: elsewhere training works without."""
    monkeypatch.chdir(config.parent)
    cfg = load_config(str(config), ["phases.0.epochs=1", "phases.0.batch_per_worker=64"])
    with ThreadPoolExecutor() as pool:
        assert pool.submit(train, cfg, Solo()).result()["epochs"] == 1


def test_a_stop_before_training_leaves_no_folder(config: Path) -> None:
    config.write_text(config.read_text().replace("resnet8_gn", "resnet8_gn, weights: no/such.pt"))
    for words in (TRAIN, mpirun(2, *TRAIN)):
        done = run([*words, str(config), "--run-dir", "run"], cwd=config.parent)
        assert done.returncode != 0
        assert not (config.parent / "run").exists()


def test_a_full_disk_and_ascii_only(config: Path) -> None:
    """events.jsonl on a full device, and a folder that an ASCII terminal cannot show."""
    (config.parent / "run").mkdir()
    (config.parent / "run/events.jsonl").symlink_to("/dev/full")
    done = run(
        [*TRAIN, str(config), "--run-dir", "run", "phases.0.epochs=1", "output=größe"],
        cwd=config.parent,
        PYTHONIOENCODING="ascii",
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("No space left on device; training goes on") == 1
    assert (config.parent / "run/summary.json").exists()
