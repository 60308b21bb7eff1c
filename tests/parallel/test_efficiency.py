"""The cause of a slow job is found, with the right share of the lost time, and explained."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.netlab.lab import Lab, why_not
from hvdtrain.telemetry.lost_time import CAUSES
from tests.launch import ENGINES, REPOSITORY, free_port, run

WORKER = REPOSITORY / "tests/parallel/efficiency_worker.py"
LINK_GBIT = 0.2  # as in the worker's config
INJECTED = 0.15 / 0.20
"""Share of a slow step's time that is injected: 0.15 s of 0.20 s."""


@pytest.fixture(scope="module")
def images(digits_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """160 images of two digits: 20 steps."""
    root = tmp_path_factory.mktemp("images")
    for name in ("3", "8"):
        folder = root / "train" / name
        folder.mkdir(parents=True)
        for image in sorted((digits_root / "train" / name).iterdir())[:80]:
            (folder / image.name).write_bytes(image.read_bytes())
    return root


def report(command: list[str], folder: Path, *slow: object) -> dict[str, Any]:
    """The only report of a run in which something is slow."""
    done = run([*command, *map(str, slow)], cwd=folder, OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stdout + done.stderr
    found: dict[str, Any] = json.loads((folder / "report.json").read_text())
    return found


def require_cause(found: dict[str, Any], cause: str, explanation: str) -> None:
    """At least 80 % of the lost time is due to `cause`, and the explanation says so."""
    lost = {each: found[f"lost_{each}_ratio"] for each in CAUSES}
    assert lost[cause] >= 0.8 * sum(max(0.0, ratio) for ratio in lost.values()), found
    assert found["cause"] == cause
    assert explanation in found["explanation"]


RANK_1 = "waiting for rank 1 on {host}, which"


@pytest.mark.parametrize(
    ("engine", "slow", "cause", "explanation"),
    [
        ("horovod", "data", "data", "waiting for images on all ranks"),
        ("horovod", "rank 1", "straggling", f"{RANK_1} computes slowly"),
        ("horovod", "data of rank 1", "straggling", f"{RANK_1} waits for images"),
        ("torch", "rank 1", "straggling", f"{RANK_1} computes slowly"),
    ],
)
def test_the_cause_is_found(
    images: Path, tmp_path: Path, engine: str, slow: str, cause: str, explanation: str
) -> None:
    command = ENGINES[engine](2, sys.executable, WORKER, images, tmp_path)
    found = report(command, tmp_path, slow)
    require_cause(found, cause, explanation.format(host=os.uname().nodename))
    if cause == "data":  # some images are prefetched, and a step is slower on a busy machine
        waiting = 1 - found["computing_s"] / found["step_seconds"]
        assert found["lost_data_ratio"] == pytest.approx(waiting, abs=0.1)
        assert waiting > 0.25
    else:
        assert found["lost_straggling_ratio"] == pytest.approx(INJECTED, abs=0.25)
    assert found["straggler"] == (1 if cause == "straggling" else None)
    assert found["efficiency_ceiling"] is None  # one machine


@pytest.fixture
def lab() -> Iterator[Lab]:
    """Two hosts joined by a slow link."""
    if reason := why_not():
        pytest.skip(reason)
    with Lab(2, link_gbit=LINK_GBIT) as made:
        yield made


def on_both(lab: Lab, ranks_per_host: int, images: Path, out: Path) -> list[str]:
    """The command that starts the worker's ranks."""
    mpirun = ["mpirun", *lab.mpirun_arguments(ranks_per_host), "-x", "OMP_NUM_THREADS"]
    return [*lab.inside(0), *mpirun, sys.executable, str(WORKER), str(images), str(out)]


def by_torchrun(lab: Lab, images: Path, out: Path) -> list[str]:
    """The shell command that starts torchrun on both hosts, each with one of the worker's ranks."""
    words = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1"]
    words += [f"--master-addr={lab.address(0)}", f"--master-port={free_port()}", "--no-python"]
    worker = [sys.executable, str(WORKER), str(images), str(out)]
    first, second = (
        shlex.join([*lab.inside(host), *words[:4], f"--node-rank={host}", *words[4:], *worker])
        for host in (0, 1)
    )
    return ["sh", "-c", f'{first} "$0" & first=$!; {second} "$0" && wait $first']


def test_a_slow_link_is_found_by_torchrun(images: Path, tmp_path: Path, lab: Lab) -> None:
    found = report(by_torchrun(lab, images, tmp_path), tmp_path, "network")
    require_cause(found, "communication", "waiting for the network")


def test_a_slow_link_is_found(images: Path, tmp_path: Path, lab: Lab) -> None:
    found = report(on_both(lab, 1, images, tmp_path), tmp_path, "network")
    ceiling = found["efficiency_ceiling"]
    words = f"waiting for the network; the link allows an efficiency of {ceiling:.0%}"
    require_cause(found, "communication", words)
    assert 0.5 * ceiling < found["efficiency"] < 1.1 * ceiling


def test_a_slow_machine_is_found(images: Path, tmp_path: Path, lab: Lab) -> None:
    found = report(on_both(lab, 2, images, tmp_path), tmp_path, "ranks 2 and 3")
    words = f"waiting for the ranks on {lab.hosts[1]}, which compute slowly"
    require_cause(found, "straggling", words)
    assert found["straggler"] is None  # both ranks, not one
    assert found["lost_straggling_ratio"] == pytest.approx(INJECTED, abs=0.25)
