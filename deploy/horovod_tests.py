"""`make horovod-tests`: Horovod's own test/parallel/test_torch.py on the Horovod that we build.

    make horovod-tests HOROVOD_TESTS="--ranks 2,4 --stock"

Horovod's source package has no tests, so two files of its release are downloaded from GitHub, checked
by their hashes and kept in the cache. `--source DIR` takes them from a checkout of Horovod instead.
Every rank gets all settings of hvdtrain.comm.horovod, those for several hosts and slow links included.
With `--stock` the tests also run on a Horovod that has no patch but the one without which it does not
compile, and every difference is an error.
"""

import argparse
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

from bootstrap import ROOT, Setup
from horovod_wheel import get_wheel
from hvdtrain.comm.horovod import settings
from progress import SetupError, clock

RELEASE = "1d217b59949986d025f6db93c49943fb6b6cc78f"  # v0.28.1
ADDRESS = f"https://raw.githubusercontent.com/horovod/horovod/{RELEASE}"
FILES = {
    "test/parallel/test_torch.py": "8af114f63fb7a87271322ad2da2c7050c3a9028570e45e8c44e9b1b4cac8db3a",
    "test/utils/common.py": "9844d1041c1e26b34657273608a51a19a94c18e0c22f9aa7971ae78189119290",
}
"""Path in Horovod's repository → sha256."""
LARGEST_BYTES = 2**20
NEEDED_PATCH = "0001-cxx-standard.patch"
"""Without it Horovod does not compile with a current torch."""
KNOWN = Path(__file__).with_name("horovod_tests_known.txt")
"""Tests that fail on stock Horovod, too: `NAME: reason` a line."""
MOCK = "from unittest import mock as _mock\n\npatch = _mock.patch\nMagicMock = _mock.MagicMock\n"
"""Stands for the package `mock`, of which Horovod's helpers import the name."""
OUTCOME = re.compile(r"::(test_\w+)(?: (PASSED|FAILED|ERROR|SKIPPED|XFAIL))?")
SLOW_LINK_HOSTS = {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_LOCAL_SIZE": "1"}
"""Variables of a job on two hosts: with them `settings` returns those for several hosts, too."""


def get_files(folder: Path, source: Path | None) -> None:
    """Fill `folder` with FILES from `source` or GitHub. Raises SetupError if they are not those."""
    for name, sha256 in FILES.items():
        target = folder / name
        if target.exists() and _digest(target.read_bytes()) == sha256:
            continue
        data = _read(source / name) if source is not None else _download(f"{ADDRESS}/{name}")
        if _digest(data) != sha256:
            where = source or ADDRESS
            raise SetupError(
                f"{where}/{name}: not the file of Horovod 0.28.1 (sha256 {_digest(data)}, expected {sha256})"
            )
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
    (folder / "test/utils/mock.py").write_text(MOCK)


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _read(file: Path) -> bytes:
    try:
        with file.open("rb") as opened:
            return opened.read(LARGEST_BYTES)
    except OSError as error:
        raise SetupError(
            f"{file}: {error.strerror}: give a checkout of Horovod's release 0.28.1"
        ) from None


def _download(url: str) -> bytes:
    try:
        with urllib.request.urlopen(url, timeout=60) as response:
            data: bytes = response.read(LARGEST_BYTES)
    except (urllib.error.URLError, TimeoutError, OSError) as error:
        raise SetupError(f"{url}: {error}: give a checkout of Horovod with --source DIR") from None
    return data


def unpack_stock(setup: Setup, folder: Path) -> None:
    """Build Horovod with NEEDED_PATCH alone, or take it from the cache, and unpack it to `folder`."""
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        shutil.copytree(ROOT / "requirements", root / "requirements")
        (root / "third_party/horovod").mkdir(parents=True)
        shutil.copy(ROOT / "third_party/horovod" / NEEDED_PATCH, root / "third_party/horovod")
        setup.progress.step(1, "Horovod without our other patches")
        wheel = get_wheel(setup.cache, root, setup.python, setup.asked(), setup.env, setup.progress)
    shutil.unpack_archive(wheel, folder, "zip")


def run_tests(
    tests: Path, ranks: int, horovod: Path | None, limit_s: float, select: str
) -> dict[str, str]:
    """Outcome of every test, the worst of all ranks; `horovod`: a folder with another Horovod.

    Raises SetupError if the tests do not end in `limit_s`.
    """
    logs = tests / f"logs-{'stock' if horovod else 'patched'}-{ranks}"
    shutil.rmtree(logs, ignore_errors=True)
    logs.mkdir()
    ours = settings(SLOW_LINK_HOSTS, cpu=True, link_gbit=1.0)
    paths = [str(horovod)] if horovod else []
    paths += [str(tests / "test/utils"), *filter(None, [os.environ.get("PYTHONPATH")])]
    libraries = [f"{sys.prefix}/lib", *filter(None, [os.environ.get("LD_LIBRARY_PATH")])]
    env = {**ours, **os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    env["LD_LIBRARY_PATH"] = os.pathsep.join(
        libraries
    )  # an unpacked wheel does not find MPI itself
    pytest = [sys.executable, "-m", "pytest", "-v", "-c", "/dev/null", "-p", "no:cacheprovider"]
    pytest += ["--rootdir", str(tests), "-k", select, str(tests / "test/parallel/test_torch.py")]
    by_rank = f'exec "$@" > {logs}/rank$OMPI_COMM_WORLD_RANK.log 2>&1'
    command = [
        f"{sys.prefix}/bin/mpirun",
        "-np",
        str(ranks),
        "--oversubscribe",
        "--bind-to",
        "none",
    ]
    command += ["sh", "-c", by_rank, "sh", *pytest]
    late = False
    with subprocess.Popen(command, env=env, cwd=tests, stdin=subprocess.DEVNULL) as job:
        try:
            job.wait(limit_s)
        except subprocess.TimeoutExpired:
            late = True
            job.terminate()
            job.wait()
    outcomes = read_logs(logs, ranks)
    if late:
        at = sorted(name for name, outcome in outcomes.items() if outcome == "no end")
        raise SetupError(
            f"{ranks} ranks: no end in {limit_s:.0f} s, in {', '.join(at)}: see {logs}"
        )
    if not outcomes:
        raise SetupError(f"{ranks} ranks: no test has run: see {logs}")
    return outcomes


def read_logs(logs: Path, ranks: int) -> dict[str, str]:
    """The worst outcome of each test over all ranks' logs of `pytest -v`."""
    order = ["no end", "failed", "passed", "skipped"]
    words = {"FAILED": "failed", "ERROR": "failed", "PASSED": "passed"}
    worst: dict[str, str] = {}
    for rank in range(ranks):
        file = logs / f"rank{rank}.log"
        text = file.read_text(errors="replace") if file.exists() else ""
        found: dict[str, str] = {}
        for name, word in OUTCOME.findall(text.partition("short test summary")[0]):
            if word or name not in found:
                found[name] = words.get(word, "skipped") if word else "no end"
        for name, outcome in found.items():
            worst[name] = min(worst.get(name, outcome), outcome, key=order.index)
    return worst


def known_failures() -> dict[str, str]:
    """Test → reason, from KNOWN."""
    lines = [line for line in KNOWN.read_text().splitlines() if line and line[0] != "#"]
    return {name.strip(): reason.strip() for name, _, reason in (x.partition(":") for x in lines)}


def judge(ours: dict[str, str], stock: dict[str, str] | None, known: dict[str, str]) -> list[str]:
    """One line for each test that fails unexpectedly, or ends otherwise than on stock Horovod."""
    lines = [
        f"{name}: {outcome}"
        for name, outcome in sorted(ours.items())
        if outcome in ("failed", "no end") and name not in known
    ]
    if stock is not None:
        lines += [
            f"{name}: {ours.get(name, 'not run')}, on stock Horovod {stock.get(name, 'not run')}"
            for name in sorted(ours.keys() | stock.keys())
            if ours.get(name) != stock.get(name)
        ]
    return lines


def _counts(outcomes: dict[str, str]) -> str:
    kinds = sorted(set(outcomes.values()))
    return ", ".join(f"{list(outcomes.values()).count(kind)} {kind}" for kind in kinds)


def main() -> int:
    """Run the tests and print the result; 0: as expected."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--ranks", default="2,4", help="numbers of ranks (default 2,4)")
    parser.add_argument("--stock", action="store_true", help="compare with an unpatched Horovod")
    parser.add_argument("--source", type=Path, help="a checkout of Horovod's release 0.28.1")
    parser.add_argument("--limit", type=float, default=1800, help="seconds for each run")
    parser.add_argument("-k", default="test", help="only these tests, as in pytest")
    args = parser.parse_args()
    setup = Setup(ROOT, os.environ)
    tests = setup.cache / "horovod-tests"
    problems: list[str] = []
    try:
        get_files(tests, args.source)
        stock = None
        if args.stock:
            stock = tests / "stock"
            shutil.rmtree(stock, ignore_errors=True)
            unpack_stock(setup, stock)
        for ranks in map(int, args.ranks.split(",")):
            results = []
            for name, folder in {"patched": None, **({"stock": stock} if stock else {})}.items():
                began = time.monotonic()
                results.append(run_tests(tests, ranks, folder, args.limit, args.k))
                took = clock(time.monotonic() - began)
                print(f"{ranks} ranks, {name}: {_counts(results[-1])} in {took}", flush=True)
            other = results[1] if stock else None
            problems += [f"{ranks} ranks: {x}" for x in judge(results[0], other, known_failures())]
    except SetupError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for line in problems:
        print(f"error: {line}", file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
