"""Wrong use: one clear line and a documented exit code, alone and on two ranks."""

from __future__ import annotations

import json
import shutil
import socket
import sys
from pathlib import Path

import pytest

from tests.launch import BIN, free_port, mpirun, run

HVDTRAIN = [sys.executable, "-m", "hvdtrain"]
CONFIG = """
name: small
data: {{train: {root}/train, val: {root}/val, augment: pad_crop, decode_threads: 1}}
model: {{name: resnet8_gn}}
lr: {{base: 0.4, warmup_epochs: 1, schedule: cosine}}
phases: [{{epochs: 2, image_size: 16, batch_per_worker: 4}}]
train: {{log_every: 1}}
metrics: {{port: {port}}}
"""


@pytest.fixture
def config(small_root: Path, tmp_path: Path) -> Path:
    """A config that works, in the directory that tests run in."""
    path = tmp_path / "small.yaml"
    path.write_text(CONFIG.format(root=small_root, port=free_port()))
    return path


def told(stderr: str) -> list[str]:
    """What hvdtrain itself said, without the launcher's farewell."""
    assert "Traceback" not in stderr, stderr
    return [line for line in stderr.splitlines() if line.startswith("hvdtrain: error: ")]


def fails(config: Path, *overrides: str, ranks: int = 1) -> tuple[int, str]:
    """Exit code and the one line."""
    command = [*HVDTRAIN, "train", config, *overrides]
    command = mpirun(ranks, *command) if ranks > 1 else list(map(str, command))
    done = run(command, cwd=config.parent)
    lines = told(done.stderr)
    assert len(lines) == 1, done.stderr
    return done.returncode, lines[0]


@pytest.mark.parametrize("ranks", [1, 2])
def test_config_faults(config: Path, ranks: int) -> None:
    code, line = fails(config, "lr.bse=1", ranks=ranks)
    assert code == 2
    assert "lr.bse: unknown key; did you mean base?" in line
    code, line = fails(config, "train.precision=fp8", ranks=ranks)
    assert code == 2
    assert "train.precision" in line
    assert "found 'fp8'" in line
    code, line = fails(config, "model.name=resnet8", ranks=ranks)
    assert code == 2
    assert "model.name: resnet8: unknown model" in line


@pytest.mark.parametrize("ranks", [1, 2])
def test_data_faults(config: Path, small_root: Path, ranks: int) -> None:
    code, line = fails(config, "data.train=/no/such/folder", ranks=ranks)
    assert code == 3
    assert "data.train: /no/such/folder: no such folder" in line
    code, line = fails(config, "data.train=null", ranks=ranks)
    assert code == 2
    assert "data.train" in line
    copy = config.parent / "copy"
    shutil.copytree(small_root, copy)
    (copy / "train/empty").mkdir()
    code, line = fails(config, f"data.train={copy}/train", ranks=ranks)
    assert code == 3
    assert "empty" in line
    code, line = fails(config, "data.train_size=23", ranks=ranks)
    assert code == 3
    assert "data.train_size: the config says 23" in line


def test_batches_that_do_not_fit(config: Path) -> None:
    code, line = fails(config, "phases.0.batch_per_worker=12", ranks=2)
    assert code == 2
    assert "phases.0.batch_per_worker: 12" in line
    assert "use at most 11" in line


def test_more_ranks_than_images(config: Path, small_root: Path) -> None:
    one = config.parent / "one"
    for name in ("3", "8"):
        (one / name).mkdir(parents=True)
        shutil.copy(next((small_root / "train" / name).iterdir()), one / name)
    code, line = fails(
        config, f"data.train={one}", "data.val=null", "phases.0.batch_per_worker=1", ranks=3
    )
    assert code == 2
    assert "3 ranks share 2 training images: use fewer ranks" in line


def test_busy_port_on_one_rank(config: Path) -> None:
    with socket.socket() as busy:
        port = free_port() + 1
        busy.bind(("127.0.0.1", port))
        busy.listen()
        command = [*HVDTRAIN, "train", config, f"metrics.port={port - 1}"]
        done = run(mpirun(2, *command), cwd=config.parent)
    assert done.returncode == 0, done.stderr
    assert "metrics.port: in use: 1 of 2 ranks took the next free one" in done.stdout
    assert not list(config.parent.glob("runs/*/file_sd.json"))  # the run is over


def test_metrics_that_no_rank_may_serve(config: Path) -> None:
    code, line = fails(config, "metrics.token_file=none", ranks=2)
    assert code == 6
    assert "metrics.token_file: none: cannot be read: No such file" in line
    code, line = fails(config, "metrics.bind=0.0.0.0", ranks=2)
    assert code == 2
    assert "bind: 0.0.0.0 is open to others: set token_file" in line


@pytest.mark.parametrize("ranks", [1, 2])
def test_run_directory_that_cannot_be_written(config: Path, ranks: int) -> None:
    blocked = config.parent / "file"
    blocked.write_text("not a directory")
    code, line = fails(config, f"output={blocked}/runs", ranks=ranks)
    assert code == 6
    assert "output: cannot write the run directory" in line
    assert "choose another with output=DIR" in line


def test_resuming_what_cannot_be_resumed(config: Path) -> None:
    folder = config.parent
    code, line = fails(config, "--resume", str(folder / "nowhere"))
    assert code == 4
    assert "no such run directory" in line
    done = run([*HVDTRAIN, "train", str(config), "--run-dir", "first"], cwd=folder)
    assert done.returncode == 0, done.stderr
    code, line = fails(config, "--run-dir", "first")
    assert code == 4
    assert "holds a run already: add --resume auto" in line
    for ranks in (1, 2):
        code, line = fails(config, "--resume", "first", "model.name=resnet8_cifar", ranks=ranks)
        assert code == 4
        assert "made by another run: its model is resnet8_gn" in line
    for meta in folder.glob("first/checkpoints/*/model.safetensors"):
        meta.write_bytes(meta.read_bytes()[:-1])
    code, line = fails(config, "--resume", "first")
    assert code == 4
    assert "no usable checkpoint" in line


def test_loss_that_is_not_finite(config: Path) -> None:
    code, line = fails(config, "lr.base=1e30", "lr.warmup=none", ranks=2)
    assert code == 7
    assert "the loss is" in line
    assert "lower lr.base" in line


def test_a_bad_image_is_named_by_its_rank_and_nobody_waits(config: Path, small_root: Path) -> None:
    copy = config.parent / "copy"
    shutil.copytree(small_root, copy)
    bad = sorted((copy / "train/3").iterdir())[4]
    bad.write_bytes(bad.read_bytes()[:200])
    code, line = fails(config, f"data.train={copy}/train", ranks=2)
    assert code == 3
    assert "rank " in line
    assert bad.name in line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train"], "Missing argument 'CONFIG'"),
        (["trane"], "No such command 'trane'"),
        (["train", "c.yaml", "--resum"], "No such option"),
        (["plan", "c.yaml", "--world-size", "0"], "--world-size"),
        (["train", "none.yaml"], "none.yaml: cannot read the config: No such file"),
        (["eval", "none"], "neither a run directory with checkpoints nor a checkpoint"),
    ],
)
def test_command_line_faults(tmp_path: Path, arguments: list[str], message: str) -> None:
    done = run([*HVDTRAIN, *arguments], cwd=tmp_path)
    lines = told(done.stderr)
    assert len(lines) == 1, done.stderr
    assert message in lines[0]
    assert done.returncode == (4 if arguments[0] == "eval" else 2)


def test_train_then_eval_agree(config: Path) -> None:
    folder = config.parent
    done = run(mpirun(2, *HVDTRAIN, "train", config, "--run-dir", "run"), cwd=folder)
    assert done.returncode == 0, done.stderr
    summary = json.loads((folder / "run/summary.json").read_text())
    assert summary["world_size"] == 2
    assert summary["samples"] == 44
    assert summary["steps"] == 6
    assert summary["scaling_efficiency"] > 0
    for command in (
        [*HVDTRAIN, "eval", "run", "--json"],
        mpirun(2, *HVDTRAIN, "eval", "run", "--json"),
        # Two batches are more than the training images, which evaluation does not look at.
        mpirun(2, *HVDTRAIN, "eval", "run", "--json", "phases.0.batch_per_worker=500"),
    ):
        done = run(command, cwd=folder)
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout.splitlines()[-1])
        assert found["images"] == 14
        assert found["top1"] == summary["top1"]
        assert found["loss"] == pytest.approx(summary["loss"], abs=1e-6)


def test_doctor_says_what_it_found(tmp_path: Path) -> None:
    done = run([*HVDTRAIN, "doctor", "--json"], cwd=tmp_path)
    found = json.loads(done.stdout)
    checks = {check["name"]: check for check in found["checks"]}
    assert checks["horovod"]["ok"]
    assert checks["decoding"]["ok"]
    assert found["horovod"]["mpi"] is True
    assert found["horovod"]["gloo"] is True
    assert found["versions"]["horovod"] == "0.28.1"
    done = run([*HVDTRAIN, "doctor"], cwd=tmp_path)
    assert "ok    decoding" in done.stdout
    # Without the launchers on PATH it says so and what to do.
    done = run([*HVDTRAIN, "doctor"], cwd=tmp_path, PATH="/nonexistent")
    assert done.returncode == 1
    assert "FAULT launcher" in done.stdout
    assert BIN.exists()
