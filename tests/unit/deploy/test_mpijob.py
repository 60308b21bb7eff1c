"""The manifest for Kubernetes fits the schema of an MPIJob; no job is started."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel

from hvdtrain.config.load import load_config
from hvdtrain.plan.epochs import make_plan
from tests.launch import REPOSITORY as ROOT

CONTAINERS = ROOT / "deploy/containers"
DOCKERFILE = CONTAINERS / "Dockerfile"
MPIJOB = ROOT / "deploy/kubernetes/mpijob.yaml"

# The part of the schema of MPIJob v2beta1 and its pods that our manifest uses.
# Source: github.com/kubeflow/mpi-operator, manifests/base/kubeflow.org_mpijobs.yaml and
# pkg/apis/kubeflow/v2beta1/types.go; Kubernetes' core/v1 for pods.
Quantity = Annotated[str, Field(pattern=r"^[0-9]+(\.[0-9]+)?([kMGTPE]i?|m)?$")] | int
Label = Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$")]


class Node(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, alias_generator=to_camel)


class Resources(Node):
    requests: dict[str, Quantity] = {}
    limits: dict[str, Quantity] = {}


class VolumeMount(Node):
    name: Label
    mount_path: Annotated[str, Field(pattern=r"^/[^:]*$")]
    read_only: bool = False


class Container(Node):
    name: Label
    image: str
    command: list[str] = []
    resources: Resources = Resources()
    volume_mounts: list[VolumeMount] = []


class Claim(Node):
    claim_name: Label
    read_only: bool = False


class EmptyDir(Node):
    medium: Literal["", "Memory"] = ""
    size_limit: Quantity | None = None


class Volume(Node):
    name: Label
    persistent_volume_claim: Claim | None = None
    empty_dir: EmptyDir | None = None


class SecurityContext(Node):
    run_as_non_root: bool
    run_as_user: int
    fs_group: int


class PodSpec(Node):
    containers: Annotated[list[Container], Field(min_length=1)]
    volumes: list[Volume] = []
    termination_grace_period_seconds: Annotated[int, Field(ge=0)] = 30
    security_context: SecurityContext


class Template(Node):
    spec: PodSpec


class Replicas(Node):
    replicas: Annotated[int, Field(ge=1)] = 1
    restart_policy: Literal["Always", "OnFailure", "Never", "ExitCode"] = "Never"
    template: Template


class RunPolicy(Node):
    clean_pod_policy: Literal["All", "Running", "None"] = "Running"
    backoff_limit: Annotated[int, Field(ge=0)] = 6
    ttl_seconds_after_finished: int | None = None
    active_deadline_seconds: int | None = None


class ReplicaSpecs(Node):
    model_config = ConfigDict(alias_generator=None)
    Launcher: Replicas
    Worker: Replicas


class Spec(Node):
    slots_per_worker: Annotated[int, Field(ge=1)] = 1
    ssh_auth_mount_path: str = "/root/.ssh"
    run_policy: RunPolicy = RunPolicy()
    mpi_implementation: Literal["OpenMPI", "Intel"] = "OpenMPI"
    mpi_replica_specs: ReplicaSpecs


class Metadata(Node):
    name: Label


class MPIJob(Node):
    api_version: Literal["kubeflow.org/v2beta1"]
    kind: Literal["MPIJob"]
    metadata: Metadata
    spec: Spec


@pytest.fixture
def manifest() -> dict[str, Any]:
    found = yaml.safe_load(MPIJOB.read_text())
    assert isinstance(found, dict)
    return found


@pytest.fixture
def job(manifest: dict[str, Any]) -> MPIJob:
    return MPIJob.model_validate(manifest)


def test_the_schema_finds_what_the_server_would(manifest: dict[str, Any]) -> None:
    """The schema above refuses misplaced, misspelt and wrong values."""
    MPIJob.model_validate(manifest)
    for path, value in (
        (("spec", "cleanPodPolicy"), "Running"),  # where v1 had it
        (("spec", "slotsPerWorker"), "8"),
        (("spec", "mpiReplicaSpecs", "Worker", "restartPolicy"), "never"),
        (("spec", "mpiReplicaSpecs", "worker"), {}),
        (("apiVersion",), "kubeflow.org/v1"),
    ):
        wrong = yaml.safe_load(MPIJOB.read_text())
        place = wrong
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = value
        with pytest.raises(ValidationError):
            MPIJob.model_validate(wrong)


def test_the_job_fits_the_image_it_runs_in(job: MPIJob) -> None:
    text = DOCKERFILE.read_text()
    sshd = (CONTAINERS / "sshd_config").read_text()
    home = Path(job.spec.ssh_auth_mount_path).parent
    assert f"WORKDIR {home}\n" in text
    assert f"HostKey {home}/.ssh/id_rsa\n" in sshd
    assert f"AuthorizedKeysFile {home}/.ssh/authorized_keys\n" in sshd
    roles = job.spec.mpi_replica_specs
    for role in (roles.Launcher, roles.Worker):
        pod = role.template.spec
        assert f"--uid {pod.security_context.run_as_user} " in text
        assert pod.security_context.run_as_non_root
        volumes = {volume.name for volume in pod.volumes}
        for container in pod.containers:
            assert {mount.name for mount in container.volume_mounts} <= volumes
    (worker,) = roles.Worker.template.spec.containers
    assert worker.resources.limits["nvidia.com/gpu"] == job.spec.slots_per_worker
    assert f"COPY deploy/containers/sshd_config {worker.command[-1]}\n" in text
    ports = [
        re.findall(r"(?m)^\s*Port (\d+)$", (CONTAINERS / name).read_text())
        for name in ("ssh_config", "sshd_config")
    ]
    assert ports == [["2222"], ["2222"]]


def test_what_the_job_runs_is_a_command_and_a_plan(job: MPIJob) -> None:
    roles = job.spec.mpi_replica_specs
    (launcher,) = roles.Launcher.template.spec.containers
    words = launcher.command
    prefix = words[words.index("--prefix") + 1]
    assert f"ENV PATH={prefix}/bin:${{PATH}}" in DOCKERFILE.read_text()
    assert words[0] == "mpirun"
    trained = words[words.index("train") + 1 :]
    config = ROOT / Path(trained[0]).relative_to("/opt/hvdtrain")
    overrides = [word for word in trained[1:] if "=" in word]
    cfg = load_config(config, overrides)
    ranks = job.spec.slots_per_worker * roles.Worker.replicas
    assert make_plan(cfg, ranks).epochs[0].global_batch_size == 1024
    (worker,) = roles.Worker.template.spec.containers
    mounts = [Path(mount.mount_path) for mount in worker.volume_mounts]
    for path in (cfg.data.train, cfg.data.val, cfg.output):
        assert any(Path(str(path)).is_relative_to(mount) for mount in mounts)
    assert trained[-2:] == ["--resume", "auto"]
