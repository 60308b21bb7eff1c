"""The files for containers and Kubernetes, read as their tools read them: nothing here starts any."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel

from hvdtrain.load_config import load_config
from hvdtrain.plan import make_plan
from tests.launch import REPOSITORY as ROOT

CONTAINERS = ROOT / "deploy/containers"
DOCKERFILE = CONTAINERS / "Dockerfile"
DEFINITION = CONTAINERS / "hvdtrain.def"
MPIJOB = ROOT / "deploy/kubernetes/mpijob.yaml"

# What MPIJob v2beta1 and the pods in it may hold, as far as our manifest goes.
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
    """The schema above is worth something: misplaced, misspelt and wrong values are refused."""
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


def instructions(text: str) -> list[tuple[str, str]]:
    """Of a Dockerfile: comments out, continued lines joined."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    return [
        (word, rest.strip())
        for word, _, rest in (line.partition(" ") for line in joined.splitlines() if line.strip())
    ]


def packages(text: str) -> list[set[str]]:
    """What every apt-get install of a script installs."""
    joined = text.replace("\\\n", " ")
    return [
        {word for word in shlex.split(found) if not word.startswith("-")}
        for found in re.findall(r"apt-get install ([^&\n]*)", joined)
    ]


def test_the_dockerfile_names_what_is_there() -> None:
    found = instructions(DOCKERFILE.read_text())
    known = {"ARG", "FROM", "RUN", "WORKDIR", "COPY", "ENV", "USER", "CMD"}
    assert {word for word, _ in found} <= known
    stages = [rest.partition(" AS ")[2] for word, rest in found if word == "FROM"]
    assert stages == ["build", ""]
    arguments = {rest.partition("=")[0] for word, rest in found if word == "ARG"}
    for rest in (rest for word, rest in found if word == "FROM"):
        assert rest.split()[0].strip("${}") in arguments
    for rest in (rest for word, rest in found if word == "COPY"):
        *sources, _target = [word for word in rest.split() if not word.startswith("--")]
        if "--from=build" not in rest:
            assert all((ROOT / source).exists() for source in sources), rest
    for script in [rest for word, rest in found if word == "RUN"]:
        subprocess.run(["sh", "-n", "-c", script], check=True)
        for name in re.findall(r"sh (deploy/\S+)", script):
            assert (ROOT / name).is_file()


def test_the_definition_names_what_is_there() -> None:
    text = DEFINITION.read_text()
    sections = dict(re.findall(r"(?ms)^%(\w+)\n(.*?)(?=^%|\Z)", text))
    assert set(sections) == {"arguments", "files", "post", "environment", "test", "runscript"}
    base = re.search(r"(?m)^From: \{\{ (\w+) \}\}$", text)
    assert base is not None
    assert f"{base[1]}=debian:bookworm-slim" in sections["arguments"]
    copied = [line.split() for line in sections["files"].splitlines() if line.strip()]
    for source, target in copied:
        assert (ROOT / source).exists()
        assert target == f"/opt/hvdtrain/{source}"
    # What set-up and a run need of a checkout, as the Dockerfile's `COPY . .` has it.
    tracked = {line.split()[0] for line in sections["files"].splitlines() if line.strip()}
    needed = {"Makefile", "pyproject.toml", "setup.py", "deploy", "requirements", "third_party"}
    assert tracked >= needed | {"hvdtrain", "pipelines", "configs"}
    for name in ("post", "environment", "test", "runscript"):
        subprocess.run(["sh", "-n", "-c", sections[name]], check=True)


def test_both_images_hold_what_set_up_asks_for() -> None:
    """deploy/machine.py looks for a compiler, make, git, Python's headers and its venv."""
    needed = {"g++", "make", "git", "python3-dev", "python3-venv", "ca-certificates"}
    build, run = packages(DOCKERFILE.read_text())
    (single,) = packages(DEFINITION.read_text())
    assert needed <= build
    assert needed <= single
    assert {"openssh-server", "openssh-client", "python3"} <= run
    if shutil.which("apt-cache") is None:
        return
    command = ["apt-cache", "show", "--no-all-versions", "bash", *(build | run | single)]
    told = subprocess.run(command, capture_output=True, text=True)
    found = set(re.findall(r"(?m)^Package: (\S+)$", told.stdout))
    if "bash" in found:  # else there are no lists
        assert build | run | single <= found


def test_the_set_up_of_an_image(tmp_path: Path) -> None:
    """The script with a make that says what it was given: torch without CUDA, by our pin."""
    script = CONTAINERS / "setup.sh"
    targets = re.findall(r"(?m)^make (\w+)$", script.read_text())
    assert targets == ["setup"]
    assert all(re.search(rf"(?m)^{t}:", (ROOT / "Makefile").read_text()) for t in targets)
    copied = tmp_path / "deploy/containers/setup.sh"
    copied.parent.mkdir(parents=True)
    shutil.copy(script, copied)
    shutil.copytree(ROOT / "requirements", tmp_path / "requirements")
    fake = tmp_path / "bin/make"
    fake.parent.mkdir()
    fake.write_text('#!/bin/sh\npwd; echo "$1"; echo "$HVDTRAIN_TORCH"\n')
    fake.chmod(0o755)
    done = subprocess.run(
        ["sh", str(copied)],
        env={"PATH": f"{fake.parent}:/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
    )
    folder, target, torch = done.stdout.splitlines()
    assert (folder, target) == (str(tmp_path.resolve()), "setup")
    if not Path("/usr/local/cuda/bin/nvcc").exists():
        pin = (ROOT / "requirements/torch.txt").read_text()
        assert torch.split()[0] in pin.splitlines()
        assert torch.split()[1:] == ["--index-url", "https://download.pytorch.org/whl/cpu"]


@pytest.mark.skipif(
    not Path("/usr/sbin/sshd").exists() or not shutil.which("ssh-keygen"), reason="no sshd"
)
def test_sshd_and_ssh_take_their_files(tmp_path: Path) -> None:
    key = tmp_path / "id_rsa"
    subprocess.run(["ssh-keygen", "-q", "-N", "", "-t", "ecdsa", "-f", key], check=True)
    text = (CONTAINERS / "sshd_config").read_text()
    served = tmp_path / "sshd_config"
    served.write_text(text.replace("/home/mpiuser/.ssh/id_rsa", str(key)))
    done = subprocess.run(["/usr/sbin/sshd", "-T", "-f", served], capture_output=True, text=True)
    if "Missing privilege separation directory" in done.stderr:
        pytest.skip("sshd was never started here")
    assert done.returncode == 0, done.stderr
    assert "port 2222\n" in done.stdout
    assert "passwordauthentication no\n" in done.stdout
    client = ["ssh", "-G", "-F", str(CONTAINERS / "ssh_config"), "worker-0"]
    told = subprocess.run(client, capture_output=True, text=True, check=True).stdout
    assert "port 2222\n" in told
    assert "userknownhostsfile /dev/null\n" in told


def test_the_page_says_that_none_of_it_was_run() -> None:
    page = (ROOT / "docs/containers.md").read_text()
    assert "not been built or run" in page
    for name in (DOCKERFILE, DEFINITION, MPIJOB):
        assert str(name.relative_to(ROOT)) in page
