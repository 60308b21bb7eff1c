"""The commands of docs/tutorial/two-machines.md, run unchanged on two hosts of a lab.

Blocks that ask for a password or need the internet are skipped: the hosts of the lab have keys and
share this checkout.
"""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path

import pytest

from benchmarks.netlab.lab import Lab, why_not
from tests.launch import REPOSITORY, environment

PAGE = REPOSITORY / "docs/tutorial/two-machines.md"
SKIPPED = ("asks for the password", "with internet")

pytestmark = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))


def blocks() -> list[tuple[str, str]]:
    """The host or hosts of each block of commands, and the commands."""
    found: list[tuple[str, str]] = re.findall(
        r"^```\n# (on|in) (.*?)\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL
    )
    return [(where, text) for _, where, text in found]


def test_word_for_word(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkout = tmp_path / "hvdtrain"
    checkout.mkdir()
    for folder in ("configs", "deploy"):
        (checkout / folder).symlink_to(REPOSITORY / folder)
    (checkout / ".venv").symlink_to(sys.prefix)
    env = environment({"HOME": str(tmp_path)})
    monkeypatch.chdir(tmp_path)
    pages = blocks()
    [shell] = [text for where, text in pages if where == "every shell"]
    outputs = []
    cores = sorted(os.sched_getaffinity(0))
    with Lab(2, nics=("eth0", "ens5"), docker0=True) as lab:
        bound = [["taskset", "-c", str(cores[host % len(cores)])] for host in range(2)]
        for host, words in enumerate(bound):  # or each host would count all cores as its own
            lab.check(host, [*words[:-1], "-p", words[-1], "1"])  # its sshd
        for where, text in pages:
            if where == "every shell" or any(words in where for words in SKIPPED):
                continue
            for host, name in enumerate(lab.hosts):
                if name in where.split():
                    script = [*bound[host], "bash", "-ec", f"{shell}\n{text}"]
                    done = lab.run(host, script, env=env, timeout_s=300)
                    assert done.returncode == 0, (text, done.stdout, done.stderr[-2000:])
                    outputs.append(done.stdout)
    name, _, _, doctor, dry, _ = outputs
    assert name == "node1\n"
    sample = re.findall(r"^ok    node\d.*$", PAGE.read_text(), re.MULTILINE)
    assert [_no_hash(line) for line in doctor.splitlines()] == list(map(_no_hash, sample))
    assert "mpirun" in dry
    [run] = (checkout / "runs").iterdir()
    summary = json.loads((run / "summary.json").read_text())
    assert (summary["world_size"], summary["top1"] > 0.9) == (2, True)
    assert "preflight: 2 ranks on 2 hosts, slowest link node" in (run / "events.jsonl").read_text()


def _no_hash(line: str) -> str:
    return re.sub(r"code \w+", "code", line)
