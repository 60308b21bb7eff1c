"""Damaged files that are found by the lines of code they reach: `python -m tests.unit.fuzz.guided READER …`.

atheris (libFuzzer) counts which branches of hvdtrain, pipelines, yaml and json an input takes, and goes on from
inputs that take new ones; the first of each reader is its valid file. It needs `pip install atheris`. An input
that is neither read nor refused in one line ends the search of that reader, and stays beside its corpus.
"""

from __future__ import annotations

import argparse
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

PACKAGES = ("hvdtrain", "pipelines", "yaml", "json")


def search(name: str, corpus: Path, seconds: int) -> None:
    """Search with one reader in this process, which libFuzzer ends."""
    import atheris

    with atheris.instrument_imports(include=list(PACKAGES)):
        from tests.unit.fuzz.mutations import read_or_refused
        from tests.unit.fuzz.seeds import readers
    reader = readers(corpus / "files")[name]
    inputs = corpus / "inputs"
    inputs.mkdir()
    (inputs / "valid").write_bytes(reader.file.read_bytes())

    def one(data: bytes) -> None:
        reader.file.unlink(missing_ok=True)
        reader.file.write_bytes(data)
        read_or_refused(reader.read)

    options = [
        f"-max_total_time={seconds}",
        "-max_len=200000",
        "-rss_limit_mb=8192",
        "-verbosity=0",
    ]
    options += [f"-artifact_prefix={corpus}/", "-print_final_stats=1", "-timeout=120"]
    atheris.Setup([sys.argv[0], str(inputs), *options], one)
    atheris.Fuzz()


def main(arguments: list[str]) -> int:
    """1 if an input was neither read nor refused, 2 without atheris."""
    parser = argparse.ArgumentParser(prog="tests.unit.fuzz.guided", description=__doc__)
    parser.add_argument("readers", nargs="*", help="names in test_readers.py; all by default")
    parser.add_argument("--seconds", type=int, default=60, help="for each reader")
    parser.add_argument("--corpus", type=Path, default=Path("fuzz-corpus"), help="a new folder")
    parser.add_argument("--only", help=argparse.SUPPRESS)
    known = parser.parse_args(arguments)
    if importlib.util.find_spec("atheris") is None:
        print("atheris is not installed: pip install atheris", file=sys.stderr)
        return 2
    if known.only:
        search(known.only, known.corpus, known.seconds)
        return 0
    from tests.unit.fuzz.test_readers import NAMES

    wrong = []
    for name in known.readers or NAMES:
        corpus = known.corpus / name.replace(" ", "-")
        (corpus / "files").mkdir(parents=True)
        options = ["--only", name, "--corpus", str(corpus), "--seconds", str(known.seconds)]
        done = subprocess.run(
            [sys.executable, "-m", "tests.unit.fuzz.guided", *options],
            capture_output=True,
            text=True,
            check=False,
        )
        found = re.search(r"number_of_executed_units: *(\d+)", done.stderr)
        count = int(found[1]) if found else 0
        print(
            f"{name:<24} {count:>9,} inputs  {'ok' if done.returncode == 0 else 'wrong'}",
            flush=True,
        )
        if done.returncode != 0:
            wrong.append(name)
            print(done.stderr[-3000:] + done.stdout[-3000:])
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
