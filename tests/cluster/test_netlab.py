"""The simulated cluster: separate hosts, ssh between them, links of the set speed."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.netlab import lab as netlab
from benchmarks.netlab import namespaces
from benchmarks.netlab.lab import Lab, LabError
from hvdtrain.launch.links import LINK_GBIT, SLOW_LINK_SETTINGS
from tests.launch import REPOSITORY, environment

COMMAND = REPOSITORY / "benchmarks/netlab/netlab.py"

pytestmark = pytest.mark.skipif(netlab.why_not() is not None, reason=str(netlab.why_not()))


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """Two hosts with cards of different names."""
    with Lab(2, link_gbit=0.2, nics=("eth0", "ens3"), docker0=True) as lab:
        yield lab


def test_hosts_are_separate_and_reach_each_other(lab: Lab) -> None:
    assert lab.check(0, "hostname").strip() == "node0"
    assert lab.check(0, ["ssh", "node1", "hostname; ls /sys/class/net"]).split() == [
        "node1",
        *("container0", "docker0", "ens3", "lo", "veth0"),
    ]
    assert "eth0" in lab.check(1, ["ssh", lab.address(0), "ls /sys/class/net"])
    for host in range(2):
        assert "172.17.0.1/16" in lab.check(host, "ip -4 -br address show docker0")


def test_nothing_reaches_the_machine(lab: Lab) -> None:
    with pytest.raises(LabError, match="Network is unreachable"):
        lab.check(0, "ip route get 192.0.2.1")
    assert (
        netlab.NETWORK not in subprocess.run(["ip", "address"], capture_output=True).stdout.decode()
    )


def test_mounts_are_seen_by_their_host_only(lab: Lab, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data/image").write_text("x")
    lab.check(1, ["mount", "-t", "tmpfs", "-o", "size=4k", "tmpfs", tmp_path / "data"])
    assert lab.check(1, ["ls", tmp_path / "data"]) == ""
    assert lab.run(1, f"head -c 10000 /dev/zero > {tmp_path}/data/full").returncode != 0
    assert lab.check(0, ["ls", tmp_path / "data"]) == "image\n"
    assert [p.name for p in (tmp_path / "data").iterdir()] == ["image"]


@pytest.mark.skipif(shutil.which("iperf3") is None, reason="needs iperf3")
def test_links_have_the_set_speed(lab: Lab) -> None:
    def received(direction: str) -> float:
        text = lab.check(0, f"iperf3 -c node1 -p 5201 -t 1 -f m {direction}")
        found = re.search(r"([\d.]+) Mbits/sec +receiver", text)
        assert found is not None, text
        return float(found[1])

    for direction in ("", "-R"):
        lab.check(1, "iperf3 -s -1 -D")
        time.sleep(0.1)
        assert 150 < received(direction) < 205


def test_mpirun_starts_ranks_on_every_host(lab: Lab) -> None:
    mpirun = shutil.which("mpirun", path=environment()["PATH"])
    if mpirun is None:
        pytest.skip("needs mpirun")
    command = [mpirun, *lab.mpirun_arguments(2), "hostname"]
    done = lab.run(0, command, env=environment(), timeout_s=60)
    assert sorted(done.stdout.split()) == ["node0", "node0", "node1", "node1"], done.stderr


def test_sums_across_hosts_go_round_in_a_ring_where_links_are_slow(lab: Lab) -> None:
    """Sums are exact for two ranks on each of two hosts, and for two ranks and one."""
    mpirun = shutil.which("mpirun", path=environment()["PATH"])
    if mpirun is None:
        pytest.skip("needs mpirun")
    for hosts, gbit in (
        ("node0:2,node1:2", "0.2"),
        ("node0:2,node1:1", "0.2"),
        ("node0,node1", "25"),
    ):
        arguments = lab.mpirun_arguments(2)
        arguments[arguments.index("-H") + 1] = hosts
        ranks = sum(int(n) for n in re.findall(r":(\d)", hosts)) or 2
        arguments[arguments.index("-np") + 1] = str(ranks)
        worker = [sys.executable, REPOSITORY / "tests/parallel/sums_worker.py"]
        env = environment({LINK_GBIT: gbit})
        done = lab.run(0, [mpirun, *arguments, "-x", LINK_GBIT, *worker], env=env, timeout_s=240)
        assert done.returncode == 0, done.stdout + done.stderr
        given = SLOW_LINK_SETTINGS if gbit == "0.2" else dict.fromkeys(SLOW_LINK_SETTINGS)
        assert done.stdout.count(f"all sums are right {given}") == ranks, done.stdout


def test_a_host_that_is_down_and_one_that_refuses() -> None:
    with Lab(3, link_gbit=None) as lab:
        lab.kill(1)
        lab.refuse_key(2)
        down = lab.run(0, "ssh node1 true")
        assert (down.returncode, "No route to host" in down.stderr) == (255, True), down.stderr
        refused = lab.run(0, "ssh node2 true")
        assert (refused.returncode, "Permission denied" in refused.stderr) == (255, True)


def test_nothing_is_left_behind() -> None:
    with Lab(2) as lab:
        pids, folder = list(lab._pids), lab.folder
        with pytest.raises(subprocess.TimeoutExpired):
            lab.run(0, "sleep 100", timeout_s=0.1)
    assert not folder.exists()
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)


def test_a_killed_lab_dies_and_clean_removes_its_folder() -> None:
    code = "import time; from benchmarks.netlab.lab import Lab; lab = Lab(2)\n"
    code += "print(lab.name, *lab._pids, flush=True); time.sleep(100)"
    child = subprocess.Popen(
        [sys.executable, "-c", code], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    with child:
        name, *pids = child.stdout.readline().split()
        os.kill(child.pid, signal.SIGKILL)
    deadline = time.monotonic() + 5
    while any(Path(f"/proc/{pid}").exists() for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
    assert netlab.labs()[name] is False
    assert f"removed {name}\n" in command("clean").stdout
    assert name not in netlab.labs()


def command(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(COMMAND), *words], capture_output=True, text=True, check=False
    )


def test_the_command() -> None:
    name = f"test-{os.getpid()}"
    try:
        made = command("up", "--hosts", "2", "--gbit", "0.5", "--nics", "a0,b0", "--name", name)
        assert made.returncode == 0, made.stderr
        assert made.stdout.splitlines()[1] == "node1  10.77.0.2  b0  0.5 Gbit/s each way"
        again = command("up", "--name", name)
        assert (again.returncode, again.stderr.count("\n")) == (1, 1)
        assert "netlab down removes it" in again.stderr
        asked = command("exec", "--name", name, "node0", "--", "ssh", "node1", "hostname")
        assert asked.stdout == "node1\n", asked.stderr
        wrong = command("exec", "--name", name, "node7", "--", "true")
        assert wrong.stderr == "netlab: no host node7, the lab has node0, node1\n"
        assert f"{name}  up\n" in command("list").stdout
    finally:
        assert command("down", "--name", name).returncode == 0
    assert command("exec", "--name", name, "node0", "--", "true").stderr.count("\n") == 1


def test_missing_programs_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(namespaces, "SYSTEM_PATH", "/nowhere")
    reason = netlab.why_not()
    assert reason is not None
    assert reason.endswith(
        "not found: apt-get install iproute2 openssh-client openssh-server util-linux"
    )
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(LabError, match="needs root"):
        Lab(2)


@pytest.mark.parametrize(
    ("cores", "shares", "expected"),
    [
        ([0, 1], 4, ["0", "1", "0", "1"]),
        ([0, 1, 2, 3, 4, 5], 4, ["0,4", "1,5", "2", "3"]),
        ([3, 7], 1, ["3,7", "3,7", "3,7", "3,7"]),
    ],
)
def test_cores_are_assigned_in_turn(cores: list[int], shares: int, expected: list[str]) -> None:
    assert netlab.assign_cores(cores, shares, hosts=4) == expected
