"""Several hosts: the findings of preflight, and real ranks started by every launcher.

The hosts' cards have different names, and each has Docker's bridge at the same address.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from benchmarks.netlab.lab import SUBNET, Lab, why_not
from hvdtrain.launch.commands import mpi_prefix
from tests.launch import LOST_HOSTS, REPOSITORY, environment

HVDTRAIN = [sys.executable, "-m", "hvdtrain"]
HOSTS = ["--hosts", "node0:1,node1:1"]

pytestmark = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """Three hosts; tests may break node2."""
    with Lab(3, nics=("eth0", "ens5", "enp3s0"), docker0=True) as hosts:
        yield hosts


@pytest.fixture
def config(small_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The config of a run of three updates on two ranks, in the working directory."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "small.yaml"
    path.write_text(
        f"""
name: small
data: {{train: {small_root}/train, val: {small_root}/val, augment: none, flip: false}}
model: {{name: resnet8_cifar}}
lr: {{warmup_epochs: 0}}
phases: [{{epochs: 1, image_size: 16, batch_per_worker: 4}}]
comm: {{link_gbit: 1.0}}
metrics: {{enabled: false}}
"""
    )
    return path


def on(lab: Lab, host: int, *command: object) -> CompletedProcess[str]:
    """Run a command of the virtual environment on a host."""
    return lab.run(host, command, env=environment(), timeout_s=300)


@contextmanager
def mounted(lab: Lab, host: int, path: Path, *how: str) -> Iterator[None]:
    """Mount something over `path` on one host only."""
    lab.check(host, ["mount", *how, path])
    try:
        yield
    finally:
        lab.check(host, ["umount", path])


def faults(done: CompletedProcess[str]) -> list[str]:
    """The lines that `doctor` marks as faults."""
    assert done.returncode == 1, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    return [line.removeprefix("FAULT ") for line in lines if line.startswith("FAULT")]


def test_no_faults(lab: Lab, config: Path) -> None:
    done = on(lab, 0, *HVDTRAIN, "doctor", *HOSTS, config, "--json")
    found = json.loads(done.stdout)
    assert done.returncode == 0, found
    cards = {name: one["nic"]["name"] for name, one in found["facts"].items()}
    assert cards == {"node0": "eth0", "node1": "ens5"}


def test_unmounted_dataset_full_disk_another_version(
    lab: Lab, config: Path, small_root: Path, tmp_path: Path
) -> None:
    """`doctor` reports each over ssh, and so does the run."""
    disk, other = tmp_path / "disk", tmp_path / "other.py"
    disk.mkdir()
    other.write_text('__version__ = "0.0.9"\n')
    version = REPOSITORY / "hvdtrain/__init__.py"
    with (
        mounted(lab, 1, small_root / "train", "-t", "tmpfs", "tmpfs"),
        mounted(lab, 1, version, "--bind", str(other)),
        mounted(lab, 0, disk, "-t", "tmpfs", "-o", "size=100k", "tmpfs"),
    ):
        reported = faults(on(lab, 0, *HVDTRAIN, "doctor", *HOSTS, config, "output=disk"))
        launch = ["mpirun", *lab.mpirun_arguments(hosts=2), *HVDTRAIN]
        done = on(lab, 0, *launch, "train", config, "output=disk")
    assert len(reported) == 3, reported
    assert reported[0].startswith("hvdtrain: 0.1.0 (code ")
    assert "; 0.0.9 (code " in reported[0]
    assert reported[0].endswith(
        " on node1: install the same on all hosts: the same checkout, and make setup in it"
    )
    empty = f"node1: data.train: {small_root}/train: an empty folder: is it mounted there? "
    assert reported[1].startswith(empty)
    assert reported[2].startswith(f"node0: {disk}: 0.1 MB free, a run needs 16.8 MB: free some")
    lines = [line for line in done.stderr.splitlines() if line.startswith("hvdtrain: error: ")]
    assert done.returncode == 5, done.stderr
    assert [line.removeprefix("hvdtrain: error: ") for line in lines[:2]] == reported[:2]
    assert f"node0: {disk}/small-" in lines[2]
    assert ": 0.1 MB free, one checkpoint needs 1.1 MB" in lines[2]
    assert not list(disk.glob("*"))


def test_unreachable_hosts(lab: Lab, config: Path) -> None:
    """A refused key, a host that is down and an unknown name do not hide the other hosts."""
    lab.refuse_key(2)
    hosts = ["--hosts", "node0,node1,node2,node9"]
    reported = faults(on(lab, 0, *HVDTRAIN, "doctor", *hosts))
    assert "node2: ssh wants a password, or refuses the key: ssh-copy-id node2" in reported
    assert any(line.startswith("node9: the name is unknown: fix the name") for line in reported)
    assert any(line.startswith("node1: cannot resolve the name node9") for line in reported)
    stopped = on(lab, 0, *HVDTRAIN, "launch", "--hosts", "node0,node2", "--", "train", config)
    assert stopped.returncode == 5
    text = "hvdtrain: error: node2: ssh wants a password, or refuses the key: ssh-copy-id node2"
    said = stopped.stderr.splitlines()  # a busy machine says what it waits for
    assert [line for line in said if not line.startswith("hvdtrain: asking ")] == [text]
    lab.kill(2)
    reported = faults(on(lab, 0, *HVDTRAIN, "doctor", "--hosts", "node0,node1,node2"))
    assert len(reported) == 1
    assert reported[0].startswith(("node2: the host is down", "node2: no answer to ssh"))


@pytest.mark.parametrize("launcher", ["mpirun", "horovodrun --mpi", "horovodrun --gloo", "launch"])
def test_launchers(lab: Lab, config: Path, launcher: str) -> None:
    """Ranks communicate through cards of different names; the link between them is measured."""
    command: list[object] = ["mpirun", *lab.mpirun_arguments(hosts=2), *HVDTRAIN]
    if launcher == "launch":
        command = [*HVDTRAIN, "launch", *HOSTS, "--"]
    elif launcher != "mpirun":
        command = [*launcher.split(), "-np", "2", "-H", "node0:1,node1:1"]
        command += ["--network-interfaces", lab.nics[0]]  # of the launching host
        if "--mpi" in launcher and (prefix := mpi_prefix()):
            command += ["--mpi-args", f"--prefix {prefix}"]
        command += HVDTRAIN
    done = on(lab, 0, *command, "train", config, "--run-dir", "run")
    assert done.returncode == 0, done.stderr[-2000:]
    events = [json.loads(line) for line in Path("run/events.jsonl").read_text().splitlines()]
    notes = [event["text"] for event in events if event["kind"] == "note"]
    [measured] = [text for text in notes if text.startswith("preflight: ")]
    assert "2 ranks on 2 hosts, slowest link node" in measured
    assert not [text for text in notes if "link" in text and text.startswith("warning")]
    assert json.loads(Path("run/summary.json").read_text())["world_size"] == 2


def test_doctor_under_a_launcher(lab: Lab, config: Path) -> None:
    command = ["mpirun", *lab.mpirun_arguments(hosts=2), *HVDTRAIN, "doctor", config]
    done = on(lab, 0, *command, f"comm.interface={SUBNET}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 ranks on 2 hosts, slowest link node" in done.stdout.splitlines()[-1]
    wrong = on(lab, 0, *command, "comm.interface=172.17.0.0/16")
    assert wrong.returncode == 5
    found = "docker0 172.17.0.1/16 mtu 1500 10000 Mbit/s (a network of containers inside this host)"
    assert "comm.interface: no usable interface is 172.17.0.0/16: found " in wrong.stderr
    assert found in wrong.stderr


@LOST_HOSTS
def test_a_host_without_power_is_replaced_by_a_spare(config: Path) -> None:
    """It is lost in mid-run; the weights are those of an undisturbed run."""
    settings = ["phases.0.epochs=60", "train.log_every=1", "checkpoint.every_steps=1"]
    with Lab(3, nics=("eth0", "ens5", "enp3s0")) as lab:
        spare = ["--hosts", "node0,node1,node2", "--nodes", "2", "--max-restarts", "3"]
        words = [*HVDTRAIN, "launch", *spare, "--", "train", config, *settings]
        with ThreadPoolExecutor(1) as pool:
            job = pool.submit(on, lab, 0, *words, "--run-dir", "lost")
            events = Path("lost/events.jsonl")
            while not events.exists() or events.read_text().count('"kind": "train"') < 5:
                assert not job.done(), job.result().stderr
                time.sleep(0.05)
            lab.kill(1)
            done = job.result()
        assert done.returncode == 0, done.stderr[-3000:]
        assert "node1 does not answer: it is left out, node2 takes its place" in events.read_text()
        whole = on(
            lab, 0, *HVDTRAIN, "launch", "--hosts", "node0,node2", "--", "train", config, *settings
        )
    assert whole.returncode == 0, whole.stderr[-3000:]
    [undisturbed] = Path("runs").glob("small-*")
    ends = [
        max(run.glob("checkpoints/e*")) / "model.safetensors"
        for run in (events.parent, undisturbed)
    ]
    assert ends[0].read_bytes() == ends[1].read_bytes()


@LOST_HOSTS
def test_a_job_goes_on_with_fewer_hosts_and_with_all_when_they_are_back(config: Path) -> None:
    settings = ["phases.0.epochs=100000", "train.log_every=1", "checkpoint.every_steps=5"]
    settings.append("train.stop_when=stop")
    code = "import sys; import hvdtrain.launch.running as running; running.RECALL_S = 3.0; "
    code += "from hvdtrain.cli.main import main; main()"
    events = Path("lost/events.jsonl")

    def begun(attempts: int) -> bool:
        text = events.read_text() if events.exists() else ""
        return text.count('"kind": "start"') == attempts and text.endswith("}\n")

    with Lab(2) as lab:
        hosts = ["--hosts", "node0,node1", "--min-nodes", "1", "--max-restarts", "2"]
        words = [sys.executable, "-c", code, "launch", *hosts, "--", "train", config, *settings]
        with ThreadPoolExecutor(1) as pool:
            words += ["--run-dir", "lost"]
            job = pool.submit(lab.run, 0, words, env=environment(), timeout_s=300)
            for attempt, link in ((1, False), (2, True), (3, True)):
                while not begun(attempt) or '"kind": "train"' not in events.read_text()[-2000:]:
                    assert not job.done(), job.result().stderr
                    time.sleep(0.1)
                lab.link(1, up=link)
            Path("stop").touch()
            done = job.result()
    lines = [json.loads(line) for line in events.read_text().splitlines()]
    assert [line["world_size"] for line in lines if line["kind"] == "start"] == [2, 1, 2]
    assert done.returncode == 75, done.stderr[-3000:]
    told = events.read_text()
    assert "node1 does not answer: it is left out" in told
    assert "node1 answers again: it takes part" in told
    seen = [(line["step"], line["total_samples"]) for line in lines if line["kind"] == "train"]
    by_step = dict(seen)
    assert all(by_step[step] == samples for step, samples in seen)  # the same images an update
