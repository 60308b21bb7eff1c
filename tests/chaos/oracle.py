"""What must be true after a fault."""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hvdtrain.checkpoint_files import list_checkpoints, verify
from hvdtrain.errors import CheckpointError
from tests.chaos.cases import MPIRUN, START, STOP, TORCHRUN, Case
from tests.chaos.job import Job
from tests.chaos.moments import all_events
from tests.launch import REPOSITORY


def documented_codes() -> frozenset[int]:
    """Every exit code in the table of docs/exit-codes.md."""
    rows = re.findall(
        r"^\| ([\d, ]+) \|", (REPOSITORY / "docs/exit-codes.md").read_text(), re.MULTILINE
    )
    return frozenset(int(code) for row in rows for code in row.split(","))


@dataclass(frozen=True)
class Reference:
    """A run that nothing disturbed."""

    weights: dict[str, str]
    """The sha256 of each file of its last checkpoint."""
    places: dict[int, tuple[float, int]]
    """After each update: epoch, and images of all ranks so far."""
    samples: int
    evaluation_s: float


def final_weights(run_dir: Path) -> dict[str, str]:
    """The digests of the newest checkpoint, verified; empty if it cannot be used."""
    for path in list_checkpoints(run_dir / "checkpoints")[:1]:
        try:
            return dict(verify(path)["sha256"])
        except CheckpointError:
            pass
    return {}


def places(events: list[dict[str, Any]]) -> dict[int, tuple[float, int]]:
    """Epoch and images after each update; of one that was made again, the last time counts."""
    return {
        event["step"]: (round(event["epoch"], 6), event["total_samples"])
        for event in events
        if event["kind"] == "train"
    }


def reference_of(run_dir: Path, summary: dict[str, Any]) -> Reference:
    """What the undisturbed run in `run_dir` has shown."""
    events = all_events(run_dir)
    waits = [
        after["time"] - before["time"]
        for before, after in itertools.pairwise(events)
        if after["kind"] == "eval"
    ]
    return Reference(final_weights(run_dir), places(events), summary["samples"], min(waits))


def wrong_codes(case: Case, codes: list[int]) -> list[str]:
    """What is wrong with the exit codes: of the job with the fault, and of those that went on."""
    found, known = [], documented_codes()
    expected = case.documented() | {0}  # 0: it was over before the fault could have an effect
    if codes[0] not in expected:
        wanted = ", ".join(map(str, sorted(expected)))
        found.append(f"exit code {codes[0]}, expected {wanted}")
    found += [
        f"exit code {code} is not in docs/exit-codes.md"
        for code in codes
        if code not in known and code not in case.documented()
    ]
    if codes[-1] != 0:
        found.append(f"did not go on to the end: exit code {codes[-1]}")
    return found


def wrong_words(case: Case, jobs: list[Job], run_dir: Path, *, noticed: bool) -> list[str]:
    """What is wrong with what was printed; `noticed`: the fault had an effect."""
    text = "\n".join(job.text() for job in jobs)
    signalled = case.launcher in (MPIRUN, TORCHRUN) and case.fault.endswith("-launcher")
    if case.kind.leaves or signalled:  # the launcher has ended: nobody prints what the ranks write
        text += "\n".join(f"{event}" for event in all_events(run_dir))
    shown = without_torchruns(text) if case.launcher == TORCHRUN else text
    found = [f"printed {word!r}" for word in ("Traceback", "internal error") if word in shown]
    # A process that a signal ends says nothing: its shell does.
    mute = case.ranks == 1 and (case.fault.startswith("kill") or case.moment == START)
    ended = case.says == STOP and _ended_by_itself(run_dir)
    if noticed and case.says and not mute and not ended and not re.search(case.says, text):
        found.append(f"silent: no line with {case.says!r}")
    return found


def without_torchruns(text: str) -> str:
    """Without the tracebacks that torchrun shows of itself when a rank has failed or it was signalled."""

    def kept(found: re.Match[str]) -> str:
        own = "/torch/distributed/" in found[0] and f"{REPOSITORY}/hvdtrain/" not in found[0]
        return "" if own else found[0]

    return re.sub(
        r"^(E\d+ .*)?Traceback \(most.*\n(^(?: |.* +File ).*\n)*", kept, text, flags=re.MULTILINE
    )


def _ended_by_itself(run_dir: Path) -> bool:
    """Whether the first job trained to its end: mpirun passes a stop on after seconds only."""
    kinds = [event["kind"] for event in all_events(run_dir)]
    starts = [place for place, kind in enumerate(kinds) if kind == "start"]
    return "end" in kinds[: starts[1] if len(starts) > 1 else len(kinds)]


def wrong_end(case: Case, run_dir: Path, reference: Reference) -> list[str]:
    """How the end of the run differs from that of the reference."""
    found, mine = [], final_weights(run_dir)
    if not mine:
        return ["no usable checkpoint at the end"]
    # Other ranks have other batch-norm statistics, and sum in another order.
    sizes = {event["world_size"] for event in all_events(run_dir) if event["kind"] == "start"}
    if not case.kind.other_end and sizes <= {case.ranks}:
        differ = [name for name in reference.weights if mine.get(name) != reference.weights[name]]
        if differ or len(mine) != len(reference.weights):
            found.append(f"the end differs in {', '.join(differ) or 'its files'}")
    done = places(all_events(run_dir))
    other = [step for step, place in done.items() if reference.places.get(step) != place]
    if other:
        found.append(f"other images by step {min(other)}: {done[min(other)]}")
    lost = case.fault in ("run-removed", "disk-full", "read-only")  # events may be lost
    if not lost and done.keys() != reference.places.keys():
        found.append(f"updates {len(done)}, expected {len(reference.places)}")
    return found


def left_behind(job: Job, run_dir: Path) -> list[str]:
    """Files that no running job needs: temporary ones, shared memory, halves of checkpoints."""
    names = {path.name for path in (job.folder / "tmp").iterdir()}
    # torch keeps a folder of compiled code for each user, on purpose, and torchrun never deletes its folder of logs.
    kept = ("torchinductor_", "torchelastic_")
    found = sorted(name for name in names if not name.startswith(kept))
    found += sorted(str(path) for path in job.segments if path.exists())
    found += sorted(path.name for path in (run_dir / "checkpoints").glob(".e*"))
    return found + [name for name in ("file_sd.json",) if (run_dir / name).exists()]
