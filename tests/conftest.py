"""Marks of tests, and images that every kind of test uses."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import hypothesis
import pytest

import digits

hypothesis.settings.register_profile("untimed", deadline=None)  # others may use the cores, too
hypothesis.settings.load_profile("untimed")

FOLDERS = ("unit", "parallel", "cluster", "gpu")
SERIAL = (
    # shares of time, and speeds of links
    *("parallel/test_efficiency.py", "parallel/test_watch.py", "unit/engine/test_stopwatch.py"),
    *("cluster/test_hosts.py::test_launchers", "cluster/test_hosts.py::test_doctor_under"),
    "cluster/test_netlab.py::test_links_have_the_set_speed",
    # memory
    *("unit/pipelines/test_memory.py", "unit/telemetry/test_telemetry_memory.py"),
    *("unit/engine/test_allocator.py", "unit/analysis/test_tune.py::test_memory_of_a_cpu"),
    # threads
    "unit/pipelines/test_loader_endings.py",
)
"""Tests whose measurements others beside them would disturb, by the start of their names."""
SLOW: tuple[str, ...] = ()
"""Unit tests of more than two seconds, which `make fast` leaves out."""


@pytest.hookimpl(tryfirst=True)  # before pytest selects by `-m`
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test with the name of its folder below tests/, with `serial` and with `slow`."""
    tests = Path(__file__).parent
    for item in items:
        folder = item.path.relative_to(tests).parts[0]
        if folder not in FOLDERS:
            raise pytest.UsageError(
                f"{item.path}: expected a test in tests/{'|'.join(FOLDERS)}: move it into one"
            )
        item.add_marker(folder)
        name = item.nodeid.removeprefix("tests/")
        for mark, names in (("serial", SERIAL), ("slow", SLOW)):
            if name.startswith(names):
                item.add_marker(mark)


@pytest.fixture(scope="session")
def digits_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """scikit-learn's handwritten digits as JPEG files, `train/<digit>/`, `val/<digit>/`."""
    root = tmp_path_factory.mktemp("digits")
    digits.write(root)
    return root


@pytest.fixture(scope="session")
def small_root(digits_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eleven training and seven validation images of each of two digits."""
    root = tmp_path_factory.mktemp("small")
    for split, count in (("train", 11), ("val", 7)):
        for name in ("3", "8"):
            folder = root / split / name
            folder.mkdir(parents=True)
            for image in sorted((digits_root / split / name).iterdir())[:count]:
                (folder / image.name).write_bytes(image.read_bytes())
    return root


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """NAME.pem and NAME.key of `ca`, of `server` and `client` signed by it, and of `stranger`."""
    if shutil.which("openssl") is None:
        pytest.skip("no openssl here to make certificates with")
    root = tmp_path_factory.mktemp("certificates")

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=root, check=True, capture_output=True)

    new = ("-nodes", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1")
    for name in ("ca", "stranger"):
        arguments = ("-keyout", f"{name}.key", "-out", f"{name}.pem", "-subj", f"/CN={name}")
        openssl("req", "-x509", *new, *arguments, "-days", "2")
    (root / "names").write_text("subjectAltName=DNS:localhost,IP:127.0.0.1")
    for name in ("server", "client"):
        openssl("req", *new, "-keyout", f"{name}.key", "-out", "request", "-subj", f"/CN={name}")
        signed = ("-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-extfile", "names")
        openssl("x509", "-req", "-in", "request", *signed, "-out", f"{name}.pem", "-days", "2")
    return root
