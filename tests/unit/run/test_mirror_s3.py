"""A training whose mirror is in an S3: the server of moto, on this machine.

Skipped without s3fs and moto[server], which `make setup` does not install: docs/how-to/resume.md has the
command.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from hvdtrain.checkpoint_files import list_checkpoints
from tests.launch import environment, free_port
from tests.stores import S3_MISSING, SECRET, s3, started
from tests.unit.run.data_runs import config

pytestmark = pytest.mark.skipif(bool(S3_MISSING), reason=f"not installed: {', '.join(S3_MISSING)}")
ANY_SERVER = """
import socket, sys, threading
listening = socket.create_server(("127.0.0.1", int(sys.argv[1])))
taken = []
while True:
    taken.append(listening.accept())  # and never answers
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of an S3 with the empty bucket `bucket`."""
    with s3(tmp_path_factory.mktemp("bucket")) as address:
        yield address


def training(work: Path, address: str, epochs: int, *more: str, mirror: str = "s3://bucket/runs"):
    """Run a training of `epochs` epochs in work/run."""
    settings = config(work, epochs).model_dump()
    settings["checkpoint"]["mirror"] = mirror
    settings["train"]["compute_threads"] = 1
    (work / "run.yaml").write_text(yaml.safe_dump(settings))
    variables = {
        "AWS_ENDPOINT_URL": address,
        "AWS_ACCESS_KEY_ID": "key-of-the-store",
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    done = subprocess.run(
        [sys.executable, "-m", "hvdtrain", "train", "run.yaml", *more],
        cwd=work,
        env=environment(variables),
        capture_output=True,
        text=True,
        timeout=300,
    )
    print(done.stdout, done.stderr)
    assert SECRET not in done.stdout + done.stderr
    return done


def model(run: Path) -> bytes:
    return (list_checkpoints(run / "checkpoints")[0] / "model.safetensors").read_bytes()


def warnings(run: Path) -> list[str]:
    events = map(json.loads, (run / "events.jsonl").read_text().splitlines())
    return [text for one in events if "mirror" in (text := one.get("text", ""))]


def test_a_lost_run_goes_on_from_s3(work: Path, server: str) -> None:
    assert training(work, server, 3, "--run-dir", "whole").returncode == 0
    again = ("--run-dir", "run", "--resume", "auto")
    assert training(work, server, 2, *again).returncode == 0
    assert warnings(work / "run") == []
    files = {path.name: path.read_bytes() for path in (work / "run").iterdir() if path.is_file()}
    assert not [name for name, data in files.items() if SECRET.encode() in data]
    (two, _) = list_checkpoints(work / "run/checkpoints")
    before = model(work / "run")
    shutil.rmtree(work / "run")
    assert training(work, server, 2, *again).returncode == 0  # nothing is left to train
    assert model(work / "run") == before
    (line,) = warnings(work / "run")
    text = f"{two.name} was copied back from the mirror s3://bucket/runs/run"
    assert line == f"warning: no checkpoint in run/checkpoints is intact: {text}"
    assert (work / "run/dataset.npz").read_bytes() == files["dataset.npz"]
    assert training(work, server, 3, *again).returncode == 0
    assert model(work / "run") == model(work / "whole")


def test_a_bucket_that_is_not_there(work: Path, server: str) -> None:
    done = training(work, server, 1, "--run-dir", "run", mirror="s3://no-bucket/runs")
    assert done.returncode == 0
    (line,) = warnings(work / "run")
    reason = "The specified bucket does not exist"
    assert (
        line == f"warning: checkpoint.mirror: s3://no-bucket/runs/run: {reason}; training goes on"
    )
    assert "Traceback" not in done.stdout + done.stderr


def test_a_server_that_never_answers(work: Path) -> None:
    """The run ends all the same, with nothing but the warning."""
    port = free_port()
    with started([sys.executable, "-c", ANY_SERVER, str(port)], port) as address:
        began = time.monotonic()
        done = training(work, address, 1, "--run-dir", "run")
    assert time.monotonic() - began < 250
    assert done.returncode == 0
    (line,) = warnings(work / "run")
    assert line.startswith("warning: checkpoint.mirror: s3://bucket/runs/run: ")
    for sign in ("Traceback", "Exception ignored", "never awaited", "Unclosed"):
        assert sign not in done.stdout + done.stderr
