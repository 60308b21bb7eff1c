"""`make wheels`: dist/wheels gets every wheel that a machine without internet needs.

These are hvdtrain, Horovod with our patches, and the packages that both need, in the versions
installed in .venv. The other machine needs the same Python version, processor type and C library.
"""

import os
import shutil
import sys
import tempfile
import time
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name, parse_wheel_filename

from bootstrap import ROOT, Setup
from horovod_wheel import get_wheel
from progress import Progress, SetupError, clock

WHEELS = ROOT / "dist" / "wheels"
DALI = ("nvidia-dali-cuda130", "nvidia-dali-cuda120")


def installed_closure(*roots: str) -> dict[str, str]:
    """Name and version of the installed packages that `roots` (requirements) need, roots included.

    A requirement that is not installed is left out: Open MPI where the system's MPI was chosen,
    DALI for CUDA 13 where the one for CUDA 12 was.
    """
    versions: dict[str, str] = {}
    seen: set[tuple[str, str]] = set()
    waiting = [Requirement(root) for root in roots]
    while waiting:
        requirement = waiting.pop()
        try:
            package = distribution(requirement.name)
        except PackageNotFoundError:
            continue
        name = canonicalize_name(requirement.name)
        versions[name] = package.version
        for extra in {"", *requirement.extras}:
            if (name, extra) in seen:
                continue
            seen.add((name, extra))
            needed = [Requirement(line) for line in package.requires or []]
            waiting += [r for r in needed if not r.marker or r.marker.evaluate({"extra": extra})]
    return versions


def check_complete(folder: Path, expected: dict[str, str]) -> None:
    """Raises SetupError unless `folder` has one wheel of each package, in the expected version."""
    found = {(name, str(version)) for name, version, *_ in _parsed(folder)}
    missing = set(expected.items()) - found
    extra = found - set(expected.items())
    if missing or extra:
        raise SetupError(
            f"the wheels differ from the packages in .venv: missing {_listed(missing)}, unexpected"
            f" {_listed(extra)}: give HVDTRAIN_TORCH an exact version, or run `make clean wheels`"
        )


def _parsed(folder: Path) -> list[tuple[str, object]]:
    return [parse_wheel_filename(wheel.name)[:2] for wheel in folder.glob("*.whl")]


def _listed(packages: set[tuple[str, str]]) -> str:
    return ", ".join(sorted(f"{name}=={version}" for name, version in packages)) or "none"


class Wheels:
    """The steps that fill one folder."""

    def __init__(self, setup: Setup, folder: Path) -> None:
        self.setup = setup
        self.folder = folder
        self.setup.progress = Progress(3)
        self.expected = installed_closure("hvdtrain[horovod]", *DALI)

    def pip_wheel(self, what: str, *arguments: str) -> None:
        pip = [str(self.setup.python), "-m", "pip", "wheel", "--no-deps"]
        self.setup.run(what, [*pip, "--wheel-dir", str(self.folder), *arguments], what)

    def hvdtrain(self) -> None:
        # setuptools would pack modules that an older build left there and that no longer exist.
        shutil.rmtree(self.setup.root / "build", ignore_errors=True)
        self.pip_wheel("hvdtrain-wheel", "--no-build-isolation", str(self.setup.root))

    def horovod(self) -> None:
        setup = self.setup
        wheel = get_wheel(
            setup.cache, setup.root, setup.python, setup.asked(), setup.env, setup.progress
        )
        shutil.copy(wheel, self.folder)

    def packages(self) -> None:
        pins = {name: f"{name}=={version}" for name, version in self.expected.items()}
        for name in ("hvdtrain", "horovod"):
            pins.pop(name)
        if self.setup.env.get("HVDTRAIN_TORCH"):  # its options may name another package index
            pins.pop("torch")
            self.pip_wheel("torch-wheel", *self.setup.torch_arguments())
        self.pip_wheel("wheels", *pins.values())
        check_complete(self.folder, self.expected)


def fill(setup: Setup, target: Path) -> None:
    """Makes the folder `target` again. It keeps its old wheels if a step fails. Raises SetupError."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".wheels-") as scratch:
        folder = Path(scratch) / "wheels"
        folder.mkdir()
        wheels = Wheels(setup, folder)
        steps = [
            ("hvdtrain", wheels.hvdtrain),
            ("Horovod", wheels.horovod),
            (f"{len(wheels.expected) - 2} other packages", wheels.packages),
        ]
        for number, (title, action) in enumerate(steps, 1):
            setup.progress.step(number, title)
            action()
            setup.progress.done()
        shutil.rmtree(target, ignore_errors=True)
        folder.rename(target)


def main() -> int:
    started = time.monotonic()
    try:
        fill(Setup(ROOT, os.environ), WHEELS)
    except (SetupError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ninterrupted: run it again", file=sys.stderr)
        return 130
    size_bytes = sum(wheel.stat().st_size for wheel in WHEELS.iterdir())
    count = len(list(WHEELS.iterdir()))
    print(
        f"{count} wheels ({size_bytes >> 20} MiB) in {clock(time.monotonic() - started)}. On the"
        " other machine, in a virtual environment:\n"
        f"  pip install --no-index --find-links {WHEELS.relative_to(ROOT)} 'hvdtrain[horovod]'"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
