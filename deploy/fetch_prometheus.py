"""Prints the folder of Prometheus and promtool; downloads Debian's package if there is none.

It looks on PATH first. Otherwise it unpacks the Debian package into the cache (HVDTRAIN_CACHE, or
~/.cache/hvdtrain), which needs apt-get but no root.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

TOOLS = ("prometheus", "promtool")


class FetchError(Exception):
    """Prometheus is neither installed nor downloadable; the message says why."""


def find_prometheus() -> Path:
    """The folder with both programs. Raises FetchError."""
    programs = {shutil.which(tool) for tool in TOOLS}
    folders = {Path(program).parent for program in programs if program is not None}
    if None not in programs and len(folders) == 1:
        return folders.pop()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    cache = Path(os.environ.get("HVDTRAIN_CACHE") or f"{base}/hvdtrain").expanduser().absolute()
    final = cache / "prometheus"
    if not all((final / "usr/bin" / tool).exists() for tool in TOOLS):
        try:
            cache.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=cache) as name:
                _unpack(Path(name))
                shutil.rmtree(final, ignore_errors=True)
                (Path(name) / "root").rename(final)
        except OSError as error:
            raise FetchError(f"the cache {cache} cannot be used: {error}") from None
    return final / "usr/bin"


def _unpack(folder: Path) -> None:
    """Downloads the package and unpacks it into `folder`/root."""
    for tool in ("apt-get", "dpkg-deb"):
        if shutil.which(tool) is None:
            raise FetchError(
                f"prometheus is not on PATH, and {tool} is missing to download Debian's package"
            )
    download = ["apt-get", "-q", "download", "prometheus"]
    try:
        _run(download, folder)
    except FetchError:  # no package lists, as in a fresh container: download them to our folder
        (folder / "lists/partial").mkdir(parents=True)
        own = ["-o", f"Dir::State::lists={folder}/lists", "-o", "APT::Sandbox::User="]
        own += ["-o", f"Dir::Cache={folder}/cache"]
        (folder / "cache/archives/partial").mkdir(parents=True)
        _run(["apt-get", "-q", *own, "update"], folder)
        _run([download[0], *own, *download[1:]], folder)
    [package] = folder.glob("prometheus_*.deb")
    _run(["dpkg-deb", "-x", package.name, "root"], folder)


def _run(command: list[str], folder: Path) -> None:
    try:
        done = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, timeout=180, check=False
        )
    except subprocess.TimeoutExpired:
        raise FetchError(f"{' '.join(command)}: not finished after 180 s") from None
    if done.returncode != 0:
        lines = (done.stderr.strip() or done.stdout.strip()).splitlines()
        raise FetchError(f"{' '.join(command)}: {lines[-1] if lines else done.returncode}")


def main() -> int:
    """Prints the folder; on failure prints the reason on standard error and returns 1."""
    try:
        print(find_prometheus())
    except FetchError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
