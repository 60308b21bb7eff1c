"""The files for containers, checked as their tools would read them; no container is started."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.launch import REPOSITORY as ROOT

CONTAINERS = ROOT / "deploy/containers"
DOCKERFILE = CONTAINERS / "Dockerfile"
DEFINITION = CONTAINERS / "hvdtrain.def"
MPIJOB = ROOT / "deploy/kubernetes/mpijob.yaml"


def instructions(text: str) -> list[tuple[str, str]]:
    """The instructions of a Dockerfile, without comments, with continued lines joined."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    return [
        (word, rest.strip())
        for word, _, rest in (line.partition(" ") for line in joined.splitlines() if line.strip())
    ]


def packages(text: str) -> list[set[str]]:
    """The packages of each `apt-get install` in a script."""
    joined = text.replace("\\\n", " ")
    return [
        {word for word in shlex.split(found) if not word.startswith("-")}
        for found in re.findall(r"apt-get install ([^&\n]*)", joined)
    ]


def test_the_dockerfile_names_existing_files() -> None:
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


def test_the_definition_names_existing_files() -> None:
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
    # What set-up and a run need of a checkout; the Dockerfile copies all of it by `COPY . .`.
    tracked = {line.split()[0] for line in sections["files"].splitlines() if line.strip()}
    needed = {"Makefile", "pyproject.toml", "setup.py", "deploy", "requirements", "third_party"}
    metadata = {"LICENSE", "NOTICE", "README.md"}  # pyproject.toml names them
    assert tracked >= needed | metadata | {"hvdtrain", "pipelines", "configs"}
    for name in ("post", "environment", "test", "runscript"):
        subprocess.run(["sh", "-n", "-c", sections[name]], check=True)


def test_both_images_hold_what_set_up_needs() -> None:
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
    shown = subprocess.run(command, capture_output=True, text=True)
    found = set(re.findall(r"(?m)^Package: (\S+)$", shown.stdout))
    if "bash" in found:  # else there are no lists
        assert build | run | single <= found


def test_the_set_up_of_an_image(tmp_path: Path) -> None:
    """A stand-in for make prints what it is given: our pinned torch, without CUDA."""
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
    settings = subprocess.run(client, capture_output=True, text=True, check=True).stdout
    assert "port 2222\n" in settings
    assert "userknownhostsfile /dev/null\n" in settings


def test_the_page_says_that_the_images_were_not_built() -> None:
    page = (ROOT / "docs/how-to/containers.md").read_text()
    assert "not been built or run" in page
    for name in (DOCKERFILE, DEFINITION, MPIJOB):
        assert str(name.relative_to(ROOT)) in page
