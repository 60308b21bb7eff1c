"""nvcc from PyPI compiles Horovod's CUDA kernels, on a machine without a GPU."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from horovod_wheel import CUDA_WHEELS, check_sha256
from machine import complete_cuda_wheels
from tests.launch import REPOSITORY

TOOLKIT = "13.0.2"
"""What torch 2.13 for CUDA 13.0 asks for."""
KERNELS = "horovod/common/ops/cuda/cuda_kernels.cu"

pytestmark = pytest.mark.skipif(
    "HVDTRAIN_NVCC" not in os.environ, reason="fetches 100 MB: set HVDTRAIN_NVCC=1"
)


def pip(*arguments: object) -> None:
    command = [sys.executable, "-m", "pip", "-q", *map(str, arguments)]
    subprocess.run(command, check=True, timeout=600)


@pytest.fixture(scope="module")
def cuda_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    site = tmp_path_factory.mktemp("cuda")
    pip("install", "--target", site, f"{CUDA_WHEELS}=={TOOLKIT}")
    home = site / "nvidia" / "cu13"
    complete_cuda_wheels(home)
    return home


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The unpacked source of the pinned Horovod."""
    folder = tmp_path_factory.mktemp("horovod")
    pinned = REPOSITORY / "requirements" / "horovod.txt"
    [requirement] = [line for line in pinned.read_text().splitlines() if line[:1] not in ("", "#")]
    pip("download", "--no-deps", "--no-build-isolation", "--dest", folder, "-r", pinned)
    [sdist] = folder.glob("horovod-*.tar.gz")
    check_sha256(sdist, requirement)
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    return next(folder.glob("horovod-*/"))


@pytest.mark.parametrize("standard", ["c++11", "c++17"])
@pytest.mark.parametrize("arch", ["sm_80", "sm_90"])
def test_horovods_kernels_compile(
    standard: str, arch: str, cuda_home: Path, source: Path, tmp_path: Path
) -> None:
    kernels = tmp_path / "kernels.o"
    command = [cuda_home / "bin" / "nvcc", f"-std={standard}", f"-arch={arch}", "-I", source]
    done = subprocess.run(
        list(map(str, [*command, "-c", source / KERNELS, "-o", kernels])),
        capture_output=True,
        text=True,
        env=dict(os.environ, CUDA_HOME=str(cuda_home)),
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert kernels.stat().st_size > 10_000
