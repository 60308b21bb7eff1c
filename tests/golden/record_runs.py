"""Record the runs of `tiny.CASES`: `python -m tests.golden.record_runs`.

It writes `runs.json`, and `run/` with the checkpoint in mid-run and the final weights of the run
on one process. Record again only where a change of the numbers is intended.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from deploy import digits
from tests.golden.tiny import CASES, CONFIG, write_images
from tests.launch import mpirun, run

FOLDER = Path(__file__).parent
RUNS = FOLDER / "runs.json"
RUN = FOLDER / "run"
MIDDLE = "e0006-s0000000000"
"""The checkpoint that is kept: the next phase has another image size."""
FINAL = "e0008-s0000000000"


def numbers(run_dir: Path) -> dict[str, list[Any]]:
    """Every reported training loss, and loss, top-1 and top-5 of every evaluation."""
    events = [json.loads(line) for line in (run_dir / "events.jsonl").read_text().splitlines()]
    return {
        "losses": [event["loss"] for event in events if event["kind"] == "train"],
        "evaluations": [
            [event["loss"], event["top1"], event["top5"]]
            for event in events
            if event["kind"] == "eval"
        ],
    }


def command(case: str, run_dir: Path) -> list[str]:
    """The command line that trains a case, in a folder with the images and `tiny.yaml`."""
    ranks, settings = CASES[case]
    words = ["-m", "tests.golden.tiny", "train", "tiny.yaml", *settings, "--run-dir", str(run_dir)]
    return mpirun(ranks, sys.executable, *words) if ranks > 1 else [sys.executable, *words]


def prepare(folder: Path, digits_root: Path) -> None:
    """Write the images and the config that `command` needs."""
    write_images(digits_root, folder)
    (folder / "tiny.yaml").write_text(CONFIG)


def main() -> None:
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # so that a rank has one thread
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        digits.write(folder / "digits")
        prepare(folder, folder / "digits")
        recorded = {}
        for case in CASES:
            line = [*command(case, folder / case), "checkpoint.keep=9"]
            done = run(line, cwd=folder)
            if done.returncode:
                sys.exit(done.stderr)
            files = sorted((folder / case / "checkpoints" / FINAL).glob("*.safetensors"))
            digests = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
            recorded[case] = {**numbers(folder / case), "sha256": digests}
        RUNS.write_text(json.dumps(recorded, indent=1) + "\n")
        shutil.rmtree(RUN, ignore_errors=True)
        source = folder / "one_process"
        shutil.copytree(source / "checkpoints" / MIDDLE, RUN / "checkpoints" / MIDDLE)
        shutil.copy(source / "config.yaml", RUN)
        shutil.copy(source / "checkpoints" / FINAL / "model.safetensors", RUN / "final.safetensors")


if __name__ == "__main__":
    main()
