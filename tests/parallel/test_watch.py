"""A foreign DDP loop that is watched: what makes it slow is found, as in runs of hvdtrain's own."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.netlab.lab import Lab, why_not
from hvdtrain.telemetry.lost_time import CAUSES
from tests.launch import REPOSITORY, end_jobs, environment, free_port, run

WORKER = REPOSITORY / "tests/parallel/watch_worker.py"
INJECTED = 0.5 / 0.6
"""Share of a slow step's time that is injected: 0.5 s of 0.6 s."""
CASES = {
    "data": ("data", "waiting for images on all ranks", None),
    "rank 1": ("straggling", "waiting for rank 1 on {host}, which computes slowly", 1),
    "data of rank 0": ("straggling", "waiting for rank 0 on {host}, which waits for images", 0),
    "data of rank 1": ("straggling", "waiting for rank 1 on {host}, which waits for images", 1),
    "hook": ("communication", "waiting for the network", None),
}
"""What is slow → the cause, the explanation and the straggler that must be found."""


def torchrun(ranks: int, *command: object) -> list[str]:
    """The command line that starts `ranks` ranks on this host."""
    port = f"--master-port={free_port()}"
    module = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={ranks}", port]
    return [*module, *map(str, command)]


def report(folder: Path) -> dict[str, Any]:
    """The only report about training in a watched loop's directory."""
    lines = (folder / "events.jsonl").read_text().splitlines()
    [found] = [event for event in map(json.loads, lines) if event["kind"] == "train"]
    return dict(found)


def require_cause(found: dict[str, Any], cause: str, explanation: str) -> None:
    """At least 80 % of the lost time is due to `cause`, and the explanation says so."""
    lost = {each: found[f"lost_{each}_ratio"] for each in CAUSES}
    assert lost[cause] >= 0.8 * sum(max(0.0, ratio) for ratio in lost.values()), found
    assert found["cause"] == cause
    assert explanation in found["explanation"]


@pytest.fixture(scope="module")
def loops(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run directories of all CASES, watched by the same two ranks."""
    out = tmp_path_factory.mktemp("loops")
    done = run(torchrun(2, WORKER, out, *CASES), cwd=out, OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stdout + done.stderr
    return out


@pytest.mark.parametrize("slow", CASES)
def test_the_cause_is_found(loops: Path, slow: str) -> None:
    cause, explanation, straggler = CASES[slow]
    [folder] = loops.glob(f"{slow.replace(' ', '-')}-2*")
    found = report(folder)
    require_cause(found, cause, explanation.format(host=os.uname().nodename))
    assert found[f"lost_{cause}_ratio"] == pytest.approx(INJECTED, abs=0.25)
    assert found["straggler"] == straggler
    assert found["samples"] == 2 * 4 * 8  # the first step does not count
    assert (found["lr"], found["momentum"], found["image_size"]) == (0.01, 0.9, 16)
    assert found["loss"] > 0
    assert found["epoch"] == 1.0


def test_what_a_watched_loop_leaves_and_serves(loops: Path) -> None:
    [folder] = loops.glob("rank-1-2*")
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["world_size"] == 2
    assert summary["steps"] == 9
    assert summary["lost_time"]["straggling"] > 0.5
    assert summary["scaling_efficiency"] == pytest.approx(1 - sum(summary["lost_time"].values()))
    assert "straggling" in (folder / "report.html").read_text()
    assert not (folder / "file_sd.json").exists()  # the endpoint is closed
    pages = json.loads((folder / "pages.json").read_text())
    metrics = dict(re.findall(r"^(hvdtrain_\w+) (\S+)$", pages["/metrics"], re.MULTILINE))
    assert float(metrics["hvdtrain_steps_total"]) == 8
    assert float(metrics["hvdtrain_allreduce_wait_seconds_total"]) > 8 * 0.4  # rank 0 waits
    assert float(metrics["hvdtrain_lost_straggling_ratio"]) > 0.5
    assert float(metrics["hvdtrain_forward_seconds_total"]) >= 8 * 0.1
    assert json.loads(pages["/api/live"])["train"]["straggler"] == 1
    assert "<html" in pages["/"]


@pytest.fixture
def lab() -> Iterator[Lab]:
    """Two hosts joined by a slow link."""
    if reason := why_not():
        pytest.skip(reason)
    with Lab(2, link_gbit=0.2) as made:
        yield made


def test_a_slow_link_is_found(tmp_path: Path, lab: Lab) -> None:
    jobs: list[subprocess.Popen[str]] = []
    for rank in range(2):
        env = environment(
            {
                "MASTER_ADDR": lab.address(0),
                "MASTER_PORT": "29400",
                "RANK": str(rank),
                "WORLD_SIZE": "2",
                "OMP_NUM_THREADS": "1",
                "GLOO_SOCKET_IFNAME": "eth0",
            }
        )
        command = [*lab.inside(rank), sys.executable, str(WORKER), str(tmp_path), "link"]
        jobs.append(subprocess.Popen(command, env=env, cwd=tmp_path, text=True))
    try:
        assert [job.wait(300) for job in jobs] == [0, 0]
    finally:
        end_jobs(jobs)
    [folder] = tmp_path.glob("link-2*")
    require_cause(report(folder), "communication", "waiting for the network")
