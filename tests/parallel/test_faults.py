"""Wrong use: one clear line and a documented exit code, on one process and on two ranks."""

from __future__ import annotations

import json
import shutil
import socket
import sys
from pathlib import Path

import pytest

from tests.launch import free_port, mpirun, run
from tests.parallel.commands import Outcome, error_lines, run_commands

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
FAULTS = {
    # settings, exit code, what the line says
    "unknown key": (["lr.bse=1"], 2, ["lr.bse: unknown key; did you mean base?"]),
    "wrong value": (["train.precision=fp8"], 2, ["train.precision", "found 'fp8'"]),
    "unknown model": (["model.name=resnet8"], 2, ["model.name: resnet8: unknown model"]),
    "no folder": (
        ["data.train=/no/such/folder"],
        3,
        ["data.train: /no/such/folder: no such folder"],
    ),
    "no data": (["data.train=null"], 2, ["data.train"]),
    "empty class": (["data.train=with_empty/train"], 3, ["empty"]),
    "wrong size": (["data.train_size=23"], 3, ["data.train_size: the config says 23"]),
    "output is a file": (
        ["output=file/runs"],
        6,
        ["output: cannot write the run directory", "choose another with output=DIR"],
    ),
    "run exists": (["--run-dir", "first"], 4, ["holds a run already: add --resume auto"]),
    "no run": (["--resume", "nowhere"], 4, ["no such run directory"]),
    "other settings": (
        ["--resume", "first", "lr.base=0.1"],
        2,
        ["first: not the settings that this run began with: lr.base 0.4 → 0.1"],
    ),
    "another model": (
        ["--resume", "first", "model.name=resnet8_cifar", "--accept-changes"],
        4,
        ["made by another run: its model is resnet8_gn"],
    ),
    "damaged": (["--resume", "damaged", "--accept-changes"], 4, ["no usable checkpoint"]),
    "no token": (
        ["metrics.token_file=none"],
        6,
        ["metrics.token_file: none: cannot be read: No such file"],
    ),
    "open to others": (
        ["metrics.bind=0.0.0.0"],
        2,
        ["bind: 0.0.0.0 is open to others: set token_file"],
    ),
    "batch too large": (
        ["phases.0.batch_per_worker=23"],
        2,
        ["phases.0.batch_per_worker: 23", "use at most {share}"],
    ),
}
"""Settings after `hvdtrain train small.yaml`, with exit code and parts of the one line; `share` is
the number of images that a rank has."""
EARLY = ("unknown key", "wrong value", "open to others")
"""Faults that are told before the ranks join; the launcher keeps the others from repeating them."""
NUM_TRAIN = 22


def prepare(folder: Path, small_root: Path) -> Path:
    """Write a valid config, and a data set with an empty class."""
    config = folder / "small.yaml"
    config.write_text(CONFIG.format(root=small_root, port=free_port()))
    shutil.copytree(small_root, folder / "with_empty")
    (folder / "with_empty/train/empty").mkdir()
    (folder / "file").write_text("not a directory")
    return config


@pytest.fixture
def config(small_root: Path, tmp_path: Path) -> Path:
    """A valid config, in the folder in which the commands of the test run."""
    return prepare(tmp_path, small_root)


@pytest.fixture(scope="module")
def folder(small_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `first`, a run of two ranks, and `damaged`, whose checkpoints are cut short."""
    folder = tmp_path_factory.mktemp("faults")
    config = prepare(folder, small_root)
    done = run(mpirun(2, *HVDTRAIN, "train", config, "--run-dir", "first"), cwd=folder)
    assert done.returncode == 0, done.stderr
    shutil.copytree(folder / "first", folder / "damaged")
    for weights in folder.glob("damaged/checkpoints/*/model.safetensors"):
        weights.write_bytes(weights.read_bytes()[:-1])
    return folder


@pytest.fixture(scope="module", params=[1, 2], ids=["1 process", "2 ranks"])
def outcomes(folder: Path, request: pytest.FixtureRequest) -> dict[str, Outcome]:
    """How every fault ends, and an evaluation of `first`."""
    commands = {name: ["train", "small.yaml", *words] for name, (words, _, _) in FAULTS.items()}
    commands["eval"] = ["eval", "first", "--json"]
    if request.param == 1:
        return run_commands(1, commands, folder)
    jobs = {name: mpirun(2, *HVDTRAIN, *commands.pop(name)) for name in EARLY}
    found = run_commands(2, commands, folder)
    for name, job in jobs.items():
        done = run(job, cwd=folder)
        found[name] = Outcome([done.returncode], done.stdout, done.stderr)
    return found


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_one_line(outcomes: dict[str, Outcome], fault: str) -> None:
    _, code, words = FAULTS[fault]
    outcome = outcomes[fault]
    assert set(outcome.codes) == {code}
    assert len(outcome.errors) == 1, outcome.stderr
    for part in words:
        assert part.format(share=NUM_TRAIN // len(outcome.codes)) in outcome.errors[0]


def test_eval_agrees_with_the_run(outcomes: dict[str, Outcome], folder: Path) -> None:
    summary = json.loads((folder / "first/summary.json").read_text())
    assert summary["world_size"] == 2
    assert summary["samples"] == 44
    assert summary["steps"] == 6
    assert summary["scaling_efficiency"] > 0
    assert set(outcomes["eval"].codes) == {0}
    result = json.loads(outcomes["eval"].stdout.splitlines()[-1])
    assert result["images"] == 14
    assert result["top1"] == summary["top1"]
    assert result["loss"] == pytest.approx(summary["loss"], abs=1e-6)


def fails(config: Path, *overrides: str, ranks: int = 1) -> tuple[int, str]:
    """Exit code and the one line of a separate job."""
    command = [*HVDTRAIN, "train", config, *overrides]
    command = mpirun(ranks, *command) if ranks > 1 else list(map(str, command))
    done = run(command, cwd=config.parent)
    lines = error_lines(done.stderr)
    assert len(lines) == 1, done.stderr
    return done.returncode, lines[0]


@pytest.mark.parametrize(
    ("ranks", "fault"), [(1, "unknown key"), (2, "unknown key"), (2, "no folder")]
)
def test_a_job_ends_with_the_exit_code(config: Path, ranks: int, fault: str) -> None:
    settings, code, words = FAULTS[fault]
    found, line = fails(config, *settings, ranks=ranks)
    assert found == code
    assert words[0] in line


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
        (["train"], "CONFIG is missing: hvdtrain train CONFIG"),
        (["trane"], "No such command 'trane'"),
        (["train", "c.yaml", "--resum"], "--resum: no such option; did you mean --resume?"),
        (["plan", "c.yaml", "--world-size", "0"], "--world-size"),
        (["train", "none.yaml"], "none.yaml: cannot read the config: No such file"),
        (["eval", "none"], "neither a run directory with checkpoints nor a checkpoint"),
    ],
)
def test_command_line_faults(tmp_path: Path, arguments: list[str], message: str) -> None:
    done = run([*HVDTRAIN, *arguments], cwd=tmp_path)
    lines = error_lines(done.stderr)
    assert len(lines) == 1, done.stderr
    assert message in lines[0]
    assert done.returncode == (4 if arguments[0] == "eval" else 2)


def test_doctor_reports_faults(tmp_path: Path) -> None:
    done = run([*HVDTRAIN, "doctor", "--json"], cwd=tmp_path)
    report = json.loads(done.stdout)
    checks = {check["name"]: check for check in report["checks"]}
    assert checks["horovod"]["ok"]
    assert checks["decoding"]["ok"]
    assert report["horovod"]["mpi"] is True
    assert report["horovod"]["gloo"] is True
    assert report["versions"]["horovod"] == "0.28.1"
    done = run([*HVDTRAIN, "doctor"], cwd=tmp_path)
    assert "ok    decoding" in done.stdout
    # Without launchers on PATH it reports that.
    done = run([*HVDTRAIN, "doctor"], cwd=tmp_path, PATH="/nonexistent")
    assert done.returncode == 1
    assert "FAULT launcher" in done.stdout
