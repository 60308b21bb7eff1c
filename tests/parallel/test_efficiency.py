"""What makes a job slow is found, with the right share of the lost time, and said in words."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hvdtrain.telemetry.lost_time import CAUSES
from tests.launch import REPOSITORY, mpirun, run

WORKER = REPOSITORY / "tests/parallel/efficiency_worker.py"
LINK_GBIT = 0.2  # as in the worker's config
INJECTED = 0.15 / 0.20
"""Seconds by which a slow step of the worker is longer, and its seconds."""
NETWORK = "10.123.45"


@pytest.fixture(scope="module")
def images(digits_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """160 images of two digits, so 20 steps."""
    root = tmp_path_factory.mktemp("images")
    for name in ("3", "8"):
        folder = root / "train" / name
        folder.mkdir(parents=True)
        for image in sorted((digits_root / "train" / name).iterdir())[:80]:
            (folder / image.name).write_bytes(image.read_bytes())
    return root


def report(command: list[str], folder: Path, *slow: object) -> dict[str, Any]:
    """The one report of a run in which something is slow."""
    done = run([*command, *map(str, slow)], cwd=folder, OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stdout + done.stderr
    found: dict[str, Any] = json.loads((folder / "report.json").read_text())
    return found


def require_cause(found: dict[str, Any], cause: str, explanation: str) -> None:
    """At least 80 % of what is lost is lost to `cause`, and the sentence says so."""
    lost = {each: found[f"lost_{each}_ratio"] for each in CAUSES}
    assert lost[cause] >= 0.8 * sum(max(0.0, ratio) for ratio in lost.values()), found
    assert found["cause"] == cause
    assert explanation in found["explanation"]


@pytest.mark.parallel
@pytest.mark.parametrize(
    ("slow", "cause", "explanation"),
    [
        ("data", "data", "waiting for images on all ranks"),
        ("rank 1", "straggling", "waiting for rank 1 on {host}, which computes slowly"),
        ("data of rank 1", "straggling", "waiting for rank 1 on {host}, which waits for images"),
    ],
)
def test_the_cause_is_found(
    images: Path, tmp_path: Path, slow: str, cause: str, explanation: str
) -> None:
    command = mpirun(2, sys.executable, WORKER, images, tmp_path)
    found = report(command, tmp_path, slow)
    require_cause(found, cause, explanation.format(host=os.uname().nodename))
    assert found[f"lost_{cause}_ratio"] == pytest.approx(INJECTED, abs=0.25)  # less: prefetched
    assert found["straggler"] == (1 if cause == "straggling" else None)
    assert found["efficiency_ceiling"] is None  # one machine


@pytest.fixture
def machines(tmp_path: Path) -> Iterator[list[str]]:
    """Two network namespaces joined by a slow link; mpirun's arguments to start a rank in each."""
    if os.geteuid() != 0 or shutil.which("tc") is None:
        pytest.skip("needs root, ip and tc to make network namespaces")
    names = [f"hvdtrain-test-{os.getpid()}-{k}" for k in range(2)]
    agent = tmp_path / "agent"
    agent.write_text(
        "#!/bin/sh\nshift\n"
        f'exec ip netns exec {names[1]} unshare --uts sh -c "hostname other; $*"\n'
    )
    agent.chmod(0o755)

    def ip(*arguments: str) -> None:
        subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)

    try:
        for name in names:
            ip("netns", "add", name)
            ip("-n", name, "link", "set", "lo", "up")
        ip("-n", names[0], "link", "add", "eth0", "type", "veth", "peer", "eth0", "netns", names[1])
        for k, name in enumerate(names):
            ip("-n", name, "address", "add", f"{NETWORK}.{k + 1}/24", "dev", "eth0")
            ip("-n", name, "link", "set", "eth0", "up")
            shape = f"qdisc add dev eth0 root tbf rate {LINK_GBIT}gbit burst 256kb latency 5ms"
            inside = ["ip", "netns", "exec", name]
            subprocess.run([*inside, "tc", *shape.split()], check=True, capture_output=True)
        yield [
            *("ip", "netns", "exec", names[0], "mpirun", "-H", f"{NETWORK}.1:2,{NETWORK}.2:2"),
            *("-mca", "plm_rsh_agent", str(agent)),
            *("-mca", "btl", "self,tcp", "-mca", "btl_tcp_if_include", "eth0"),
            *("-mca", "oob_tcp_if_include", "eth0", "-x", "PATH", "-x", "PYTHONPATH"),
            *("-x", "OMP_NUM_THREADS", "--prefix", sys.prefix),
        ]
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True)


@pytest.mark.parallel
def test_a_slow_link_is_found(images: Path, tmp_path: Path, machines: list[str]) -> None:
    worker = [sys.executable, str(WORKER), str(images), str(tmp_path)]
    found = report([*machines, "-np", "2", "-map-by", "node", *worker], tmp_path, "network")
    ceiling = found["efficiency_ceiling"]
    words = f"waiting for the network; the link allows an efficiency of {ceiling:.0%}"
    require_cause(found, "communication", words)
    assert 0.5 * ceiling < found["efficiency"] < 1.1 * ceiling


@pytest.mark.parallel
def test_a_slow_machine_is_found(images: Path, tmp_path: Path, machines: list[str]) -> None:
    worker = [sys.executable, str(WORKER), str(images), str(tmp_path)]
    found = report([*machines, "-np", "4", *worker], tmp_path, "ranks 2 and 3")
    words = "waiting for the ranks on other, which compute slowly"
    require_cause(found, "straggling", words)
    assert found["straggler"] is None  # none of the two alone
    assert found["lost_straggling_ratio"] == pytest.approx(INJECTED, abs=0.15)
