"""From options and environment to a running launcher, with substitutes for the launchers."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Literal

import pytest

from hvdtrain.errors import ConfigError
from hvdtrain.launch import start
from hvdtrain.launch.commands import named_config
from hvdtrain.launch.links import LINK_GBIT
from hvdtrain.launch.nic import Nic
from hvdtrain.launch.start import AS_ROOT, launch_request, prepare

TRAIN = ("train", "x.yaml")


@pytest.fixture
def env(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """A user's environment, whose launchers only write down theirs."""
    for name in ("srun", "mpirun", "horovodrun"):
        script = tmp_path / name
        script.write_text(f'#!/bin/sh\necho "mpirun (Open MPI) 4.1.6"\nenv > {tmp_path}/env\n')
        script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    return {"PATH": os.environ["PATH"], "HOME": "/root", "NCCL_DEBUG": "INFO", "EDITOR": "vi"}


def slurm(nodes: str) -> dict[str, str]:
    """The environment of a batch script with two tasks on each node."""
    return {
        "SLURM_JOB_ID": "7",
        "SLURM_JOB_NODELIST": nodes,
        "SLURM_TASKS_PER_NODE": "2",
        "SLURMD_NODENAME": "n1",
    }


def variables(folder: Path) -> dict[str, str]:
    """What the launcher was given."""
    lines = (folder / "env").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if "=" in line)


def test_a_job_on_this_host_needs_no_network(env: dict[str, str]) -> None:
    request = launch_request(TRAIN, env, hosts="localhost:2")
    assert (request.launcher, request.controller) == ("mpirun", "mpi")
    assert not request.needs_ssh
    assert prepare(request, env).request.nic is None


def test_a_host_elsewhere_needs_ssh(env: dict[str, str]) -> None:
    assert launch_request(TRAIN, env, hosts="node7:2").needs_ssh
    assert not launch_request(TRAIN, env | slurm("n2")).needs_ssh


def test_ranks_of_srun_get_the_address_of_a_store(env: dict[str, str], tmp_path: Path) -> None:
    request = launch_request(TRAIN, env | slurm("n1"))
    assert (request.launcher, request.controller) == ("srun", "gloo")
    assert prepare(request, env).run().code == 0
    given = variables(tmp_path)
    assert re.fullmatch(r"127\.0\.0\.1:\d+", given["HVDTRAIN_RENDEZVOUS"])
    assert given["HVDTRAIN_RANKS"] == "2"


def test_ranks_over_mpi_need_no_store(env: dict[str, str], tmp_path: Path) -> None:
    prepare(launch_request(TRAIN, env | slurm("n1"), controller="mpi"), env).run()
    assert "HVDTRAIN_RENDEZVOUS" not in variables(tmp_path)


def test_torch_needs_no_store(
    env: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So `hvdtrain launch` works in a Slurm job where Horovod, of which our store is made, is not installed."""
    monkeypatch.setitem(sys.modules, "horovod", None)
    monkeypatch.delitem(sys.modules, "hvdtrain.launch.rendezvous", raising=False)
    request = launch_request(TRAIN, env | slurm("n1"))
    assert prepare(request, env, horovod=False).run().code == 0
    assert "HVDTRAIN_RENDEZVOUS" not in variables(tmp_path)


def test_horovodrun_gets_only_what_may_be_forwarded(env: dict[str, str], tmp_path: Path) -> None:
    request = launch_request(TRAIN, env, hosts="localhost:2", launcher="horovodrun")
    prepare(request, env).run()
    given = variables(tmp_path)
    assert given["NCCL_DEBUG"] == "INFO"
    assert given["HOME"] == "/root"
    assert "EDITOR" not in given


@pytest.mark.parametrize("launcher", ["mpirun", "horovodrun"])
def test_root_is_told_what_mpirun_wants_before_it_starts(
    launcher: Literal["mpirun", "horovodrun"],
    env: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    request = launch_request(TRAIN, env, hosts="localhost:2", launcher=launcher)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    for half in ({}, {AS_ROOT[0]: "1"}):
        job = prepare(request, env | half)
        (tmp_path / "env").unlink(missing_ok=True)  # of asking for the version
        with pytest.raises(ConfigError) as refused:
            job.run()
        assert not (tmp_path / "env").exists()
        assert str(refused.value).endswith(f"first export {AS_ROOT[0]}=1 {AS_ROOT[1]}=1")
        assert "\n" not in str(refused.value)
    assert prepare(request, env | dict.fromkeys(AS_ROOT, "1")).run().code == 0
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert prepare(request, env).run().code == 0


def test_launchers_that_cannot_do_it(env: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match="works only in a Slurm job"):
        launch_request(TRAIN, env, hosts="a:1", launcher="srun")
    request = launch_request(TRAIN, env, hosts="localhost:2", controller="gloo")
    with pytest.raises(ConfigError, match="mpirun cannot do it"):
        prepare(request, env)


def test_the_config_in_a_ranks_arguments() -> None:
    assert named_config(["train", "a.yaml", "lr.base=1", "--resume=auto"]) == (
        "a.yaml",
        ["lr.base=1"],
    )
    assert named_config(["eval", "runs/a"]) == (None, [])


@pytest.mark.parametrize(
    ("speed_mbit", "own", "given"),
    [(1000, None, "1"), (2500, None, "2.5"), (0, None, None), (1000, "25", "25")],
    ids=["card", "2.5 Gbit/s", "virtual", "the user's own"],
)
@pytest.mark.parametrize("launcher", ["mpirun", "horovodrun"])
def test_all_ranks_are_given_the_speed_of_the_card(
    launcher: Literal["mpirun", "horovodrun"],
    speed_mbit: int,
    own: str | None,
    given: str | None,
    env: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    nic = Nic("eth0", "10.0.0.1", 24, 1500, speed_mbit)
    monkeypatch.setattr(start, "choose", lambda *_: nic)
    env |= {LINK_GBIT: own} if own else {}
    job = prepare(launch_request(TRAIN, env, hosts="a:1,b:1", launcher=launcher), env)
    assert job.env.get(LINK_GBIT) == given
    assert (LINK_GBIT in job.request.names) is (given is not None)
    assert job.run().code == 0
    assert variables(tmp_path).get(LINK_GBIT) == given


def test_on_one_host_the_card_does_not_matter(
    env: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    nic = Nic("eth0", "10.0.0.1", 24, 1500, 1000)
    monkeypatch.setattr(start, "choose", lambda *_: nic)
    job = prepare(launch_request(TRAIN, env, hosts="localhost:2"), env, "eth0")
    assert LINK_GBIT not in job.env
