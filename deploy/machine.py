"""Finds the compiler, MPI, CUDA toolkit and installed torch of this machine."""

import json
import shlex
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from progress import SetupError

_ASK_PYTHON = """
import importlib.metadata, json, sysconfig, torch
def version(name):
    try: return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError: return None
print(json.dumps({
    "torch": torch.__version__, "cuda": torch.version.cuda,
    "cxx11_abi": bool(torch._C._GLIBCXX_USE_CXX11_ABI),
    "python": sysconfig.get_config_var("SOABI"),
    "cuda_toolkit_wheel": version("cuda-toolkit"),
    "site": sysconfig.get_paths()["platlib"],
}))
"""


def first_line(command: list[str]) -> str:
    """The first line that a command prints; empty if it fails."""
    try:
        answer = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return (answer.stdout or answer.stderr).partition("\n")[0].strip()


def find_compiler(env: Mapping[str, str]) -> list[str]:
    """The C++ compiler as a command: $CXX (which may hold options), g++, c++ or clang++."""
    for candidate in (env.get("CXX", ""), "g++", "c++", "clang++"):
        command = shlex.split(candidate)
        if command and shutil.which(command[0], path=env.get("PATH", "")):
            return command
    raise SetupError(
        "no C++ compiler found (looked for $CXX, g++, c++, clang++): install one,"
        " e.g. apt install g++"
    )


def find_system_mpi(env: Mapping[str, str]) -> Path | None:
    """The mpicxx that HVDTRAIN_MPI chooses; None means Open MPI from PyPI, the default."""
    choice = env.get("HVDTRAIN_MPI", "") or "wheel"
    if choice == "wheel":
        return None
    found = shutil.which("mpicxx" if choice == "system" else choice, path=env.get("PATH", ""))
    if found is None:
        raise SetupError(
            f"HVDTRAIN_MPI={choice}: MPI compiler not found: give 'wheel', 'system' (mpicxx on PATH)"
            " or the path of an mpicxx"
        )
    return Path(found)


def find_cuda(cuda: str, env: Mapping[str, str], site: Path) -> Path | None:
    """A CUDA toolkit of torch's major version: installed, or from wheels in `site`; else None."""
    on_path = shutil.which("nvcc", path=env.get("PATH", ""))
    candidates = [Path(env[name]) for name in ("HOROVOD_CUDA_HOME", "CUDA_HOME") if env.get(name)]
    if on_path:  # resolved: a symlink to nvcc is not beside its toolkit
        candidates.append(Path(on_path).resolve().parent.parent)
    major = cuda.partition(".")[0]
    candidates += [Path(f"/usr/local/cuda-{cuda}"), Path("/usr/local/cuda")]
    # Some machines have nvcc without the rest of the toolkit.
    candidates = [home for home in candidates if (home / "include" / "cuda_runtime.h").exists()]
    candidates.append(site / "nvidia" / f"cu{major}")
    for home in candidates:
        nvcc = home / "bin" / "nvcc"
        if nvcc.exists() and f"release {major}." in output_of([str(nvcc), "--version"]):
            return home
    return None


def complete_cuda_wheels(home: Path) -> None:
    """Adds two links that nvcc and cmake need and that NVIDIA's wheels lack."""
    if not (home / "lib64").exists():
        (home / "lib64").symlink_to("lib")
    runtime = next((home / "lib").glob("libcudart.so.*"), None)
    if runtime and not (home / "lib" / "libcudart.so").exists():
        (home / "lib" / "libcudart.so").symlink_to(runtime.name)


def output_of(command: list[str]) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout


def ask_python(python: Path, env: dict[str, str]) -> dict[str, Any]:
    """Versions and build options of the Python and torch in .venv. Raises SetupError."""
    answer = subprocess.run(
        [str(python), "-c", _ASK_PYTHON], capture_output=True, text=True, env=env, check=False
    )
    if answer.returncode != 0:
        reason = (answer.stderr.strip().splitlines() or ["no message"])[-1]
        raise SetupError(f"torch does not import in {python}: {reason}: try `make clean setup`")
    result: dict[str, Any] = json.loads(answer.stdout.splitlines()[-1])
    return result


def check_machine(env: Mapping[str, str]) -> None:
    """Raises SetupError for the first missing thing that no later step installs."""
    if sys.platform != "linux":
        raise SetupError(
            f"hvdtrain runs on Linux, this is {sys.platform}: use a Linux machine or container"
        )
    python = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    if not find_spec("venv") or not find_spec("ensurepip"):
        raise SetupError(
            f"{sys.executable} has no venv module: install it, e.g. apt install {python}-venv"
        )
    header = Path(sysconfig.get_paths()["include"]) / "Python.h"
    if not header.exists():
        raise SetupError(
            f"the C headers of {sys.executable} are missing ({header}): install them,"
            f" e.g. apt install {python}-dev"
        )
    find_compiler(env)
    for tool in ("make", "git"):
        if not shutil.which(tool, path=env.get("PATH", "")):
            raise SetupError(f"{tool} not found: install it, e.g. apt install {tool}")
