"""The course of one case: a training, its fault, and the training that goes on."""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.netlab import lab
from tests.chaos import faults, oracle
from tests.chaos.cases import ALONE, HOSTS, MPIRUN, TORCHRUN, Case
from tests.chaos.job import Job
from tests.chaos.moments import Missed, all_events, wait_for
from tests.launch import REPOSITORY, free_port

CONFIG = """
name: chaos
data: {train: images/train, val: images/val, augment: pad_crop, decode_threads: 1}
model: {name: resnet8_cifar}
lr: {base: 0.02, warmup_epochs: 1, schedule: cosine}
phases:
  - {epochs: 2, image_size: 16, batch_per_worker: 4}
  - {epochs: 2, image_size: 24, batch_per_worker: 4}
train: {log_every: 1, ema_decay: 0.999, compute_threads: 1}
checkpoint: {every_steps: 15, keep: 3}
comm: {preflight: false}
metrics: {enabled: false}
"""
TRAIN_IMAGES, VAL_IMAGES = 36, 20
"""Of each of ten classes."""
WHERE = ["--run-dir", "disk/run"]
ATTEMPTS = 3
"""Jobs after the first one, at most."""


@dataclass
class Result:
    """What came of a case."""

    case: Case
    verdict: str = "ok"
    """ok; wrong; leak: all is right, but files are left that only the killed launcher could have deleted;
    hang: a job did not end; missed: it had ended before the fault; skipped."""
    codes: list[int] = field(default_factory=list)
    """Exit codes of the jobs in order."""
    at: str = ""
    """Where the fault struck."""
    recovered_s: float | None = None
    """From the fault to the first update of a job that went on."""
    seconds: float = 0.0
    notes: list[str] = field(default_factory=list)


class Chaos:
    """Runs cases in a folder of its own, which ends with it."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="chaos-"))
        self._references: dict[tuple[int, str], oracle.Reference] = {}

    def close(self, *, keep: bool = False) -> None:
        if not keep:
            shutil.rmtree(self.folder, ignore_errors=True)

    def reference(self, case: Case) -> oracle.Reference:
        """The undisturbed run on as many ranks; made once. Raises RuntimeError if it fails."""
        launcher = ALONE if case.ranks == 1 else MPIRUN
        if case.launcher == TORCHRUN:  # four ranks sum in another order than Open MPI's
            launcher = TORCHRUN
        key = case.ranks, launcher
        if key not in self._references:
            folder = self.prepared(f"reference-{case.ranks}-{launcher}")
            job = Job(folder, launcher, case.ranks, WHERE, [])
            if job.wait() != 0:
                job.end()
                raise RuntimeError(f"the reference run failed:\n{job.text()}")
            summary = json.loads((folder / "disk/run/summary.json").read_text())
            self._references[key] = oracle.reference_of(folder / "disk/run", summary)
        return self._references[key]

    def run(self, case: Case) -> Result:
        """One case, with the reference run that it needs."""
        result = Result(case)
        if reason := why_not(case):
            result.verdict, result.notes = "skipped", [reason]
            return result
        reference = self.reference(case)
        folder = self.prepared(f"case-{case.seed}")
        began, jobs = time.monotonic(), list[Job]()
        scene = faults.Scene(case, folder, folder / "disk/run", case.random())
        try:
            _course(scene, reference, jobs, result)
        except (Missed, Hangs) as error:
            result.verdict = "hang" if isinstance(error, Hangs) else "missed"
            result.notes = [str(error)]
        finally:
            for job in jobs:
                job.end()
            scene.close()
        result.seconds = time.monotonic() - began
        if result.verdict in ("ok", "missed"):
            shutil.rmtree(folder, ignore_errors=True)
        else:
            result.notes.append(f"see {folder}")
        return result

    def prepared(self, name: str) -> Path:
        """A new folder with a config, and copies of the images."""
        folder = self.folder / name
        folder.mkdir()
        (folder / "chaos.yaml").write_text(CONFIG)
        shutil.copytree(self._images(), folder / "images")
        return folder

    def _images(self) -> Path:
        images = self.folder / "images"
        if not images.exists():
            sys.path.insert(0, str(REPOSITORY / "deploy"))
            import digits

            digits.write(self.folder / "digits")
            for split, count in (("train", TRAIN_IMAGES), ("val", VAL_IMAGES)):
                for one in (self.folder / "digits" / split).iterdir():
                    target = images / split / one.name
                    target.mkdir(parents=True)
                    for image in sorted(one.iterdir())[:count]:
                        shutil.copy2(image, target)
        return images


def why_not(case: Case) -> str | None:
    """Why a case cannot be run on this machine; None if it can."""
    if case.kind.as_root and os.geteuid() != 0:
        return "needs root to mount a disk"
    return lab.why_not() if case.launcher == HOSTS else None


class Hangs(Exception):
    """A job, or a process of it, did not end."""


def _course(
    scene: faults.Scene, reference: oracle.Reference, jobs: list[Job], result: Result
) -> None:
    """Start, strike, wait, go on, judge. `jobs` gets every job that was started. Raises Missed, Hangs."""
    case = scene.case
    faults.before(scene)
    more = faults.settings(scene, free_port())
    options = ["--max-restarts=2"] if case.fault == "kill-restart" else []
    if (
        options and case.launcher == TORCHRUN
    ):  # which does not know that there is something to resume
        more += ["--resume", "auto"]
    # An attempt that is killed before its first checkpoint is begun anew.
    where = [*WHERE, "--batch-for-ranks", str(case.ranks)] if case.then_ranks else WHERE
    jobs.append(Job(scene.folder, case.launcher, case.ranks, [*more, *where], options, scene.lab))
    result.at = wait_for(case.moment, jobs[0], scene.run_dir, scene.chance, reference.evaluation_s)
    jobs[0].look()
    struck = time.time()
    faults.strike(scene, jobs[0])
    result.codes.append(_ended(jobs[0]))
    if case.fault.startswith("checkpoint") and result.codes[0] != 0:
        result.at += f", {faults.damage_checkpoint(scene)}"
    for repair in scene.repair:
        repair()
    while result.codes[-1] != 0 and len(jobs) <= ATTEMPTS:
        words, ranks = [*where, "--resume", "auto"], case.then_ranks or case.ranks
        jobs.append(Job(scene.folder, case.launcher, ranks, words, [], scene.lab))
        result.codes.append(_ended(jobs[-1]))
    if len(jobs) > 1 or options:
        result.recovered_s = _recovered(scene.run_dir, struck)
    _judge(scene, reference, jobs, result)


def _judge(
    scene: faults.Scene, reference: oracle.Reference, jobs: list[Job], result: Result
) -> None:
    """Set verdict and notes of a case whose jobs have ended."""
    case, run_dir = scene.case, scene.run_dir
    always = ("kill-restart", "port-taken", "run-removed", "image-replaced")
    noticed = result.codes[0] != 0 or case.fault in always
    faulty = [
        *oracle.wrong_codes(case, result.codes),
        *oracle.wrong_words(case, jobs, run_dir, noticed=noticed),
        *oracle.wrong_end(case, run_dir, reference),
    ]
    left = {name: None for job in jobs for name in oracle.left_behind(job, run_dir)}
    result.notes += faulty + [f"left behind: {name}" for name in left]
    if faulty or (left and not case.leaves):
        result.verdict = "wrong"
    elif left:
        result.verdict = "leak"
    elif result.codes[0] == 0 and 0 not in case.kind.codes:
        result.verdict = "missed"
        result.notes.append("it had ended before the fault had an effect")


def _ended(job: Job) -> int:
    """The exit code of a job when all of its processes have ended. Raises Hangs."""
    code = job.wait()
    if code is None:
        left = ", ".join(" ".join(process.cmdline())[:80] for process in job.processes())
        raise Hangs(f"{job.output.name}: did not end: {left}")
    return code


def _recovered(run_dir: Path, struck: float) -> float | None:
    """Seconds from the fault, at the Unix time `struck`, to the first update of the last job."""
    after = [event for event in all_events(run_dir) if event["time"] > struck]
    starts = [k for k, event in enumerate(after) if event["kind"] == "start"]
    times = (
        [event["time"] for event in after[starts[-1] :] if event["kind"] == "train"]
        if starts
        else []
    )
    return times[0] - struck if times else None
