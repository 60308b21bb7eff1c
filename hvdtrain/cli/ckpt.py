"""`hvdtrain ckpt`: list, verify, compare and delete checkpoints. Parse, call, print."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hvdtrain.cli.job import AsJson
from hvdtrain.cli.progress import doing
from hvdtrain.config.kinds import plain
from hvdtrain.errors import CheckpointError, ResourceError

if TYPE_CHECKING:
    from hvdtrain.run.checkpoint_diff import Difference, FileDifference, Setting
    from hvdtrain.run.checkpoints import Entry, Verdict
    from hvdtrain.run.pruning import Pruned

ckpt_app = typer.Typer(
    help="List, verify, compare and delete checkpoints.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

MOST_LINES = 20
"""Of one kind; --json has all."""
MOST_CHARACTERS = 60
"""Of one value."""

Run = Annotated[Path, typer.Argument(metavar="RUN", help="Run directory.")]
RunOrCheckpoint = Annotated[
    Path, typer.Argument(metavar="RUN|CHECKPOINT", help="Run directory, or one of its checkpoints.")
]


@ckpt_app.command("ls")
def list_all(run: Run, as_json: AsJson = False) -> None:
    """List the checkpoints of a run, the last written first.

    Each says why it is kept; one that says nothing goes when the next is written. Damaged ones, what a
    killed job has left, and files of others are listed after them and marked.
    Only metadata are read: ckpt verify checks every byte.
    """
    from hvdtrain.run.checkpoints import listing

    entries = listing(run)
    if as_json:
        typer.echo(json.dumps({"checkpoints": [entry.as_dict() for entry in entries]}))
    else:
        typer.echo(_listing_text(entries) if entries else f"{run}: no checkpoints")


@ckpt_app.command()
def verify(
    run: RunOrCheckpoint,
    every: Annotated[
        bool, typer.Option("--all", help="All checkpoints of the run. Default: the newest.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Check every byte of a checkpoint.

    Prints a line for each checkpoint: ok, or what is wrong. Checkpoints that were set aside as damaged
    are not checked again unless they are named. If one is damaged, the exit code is 4.
    """
    from hvdtrain.run.checkpoints import check, to_verify

    verdicts: list[Verdict] = []
    for path in to_verify(run, every=every):
        with doing(f"verifying {path.name}"):
            verdicts.append(check(path))
        if not as_json:
            typer.echo(_verdict_text(verdicts[-1]))
    if as_json:
        typer.echo(json.dumps({"checkpoints": [verdict.as_dict() for verdict in verdicts]}))
    states = {verdict.state for verdict in verdicts}
    if "damaged" in states or "ok" not in states:
        raise typer.Exit(CheckpointError.exit_code)


@ckpt_app.command()
def diff(
    a: Annotated[Path, typer.Argument(metavar="A", help="Checkpoint, or run: its newest one.")],
    b: Annotated[Path, typer.Argument(metavar="B", help="Checkpoint, or run: its newest one.")],
    as_json: AsJson = False,
) -> None:
    """Compare two checkpoints.

    Shows the metadata that differ (position, labels, config), and how many tensors differ and by how
    much. Both are verified first. Exit code 0: equal to the bit; 1: different. The time of training
    and the number of the checkpoint are shown, but do not count.
    """
    from hvdtrain.run.checkpoint_diff import difference
    from hvdtrain.run.checkpoints import one_of

    first, second = one_of(a), one_of(b)
    with doing("comparing"):
        found = difference(first, second)
    if as_json:
        about = {"a": str(first), "b": str(second)}
        typer.echo(json.dumps({**about, **found.as_dict()}))
    else:
        typer.echo(_difference_text(first, second, found))
    if not found.equal:
        raise typer.Exit(1)


@ckpt_app.command()
def prune(
    run: Run,
    keep: Annotated[
        int, typer.Option(min=1, metavar="N", help="Number of intact checkpoints to keep.")
    ],
    keep_best: Annotated[
        int | None,
        typer.Option(
            min=0,
            metavar="N",
            help="Keep also so many of the highest top-1. Default: the run's checkpoint.keep_best.",
        ),
    ] = None,
    keep_every: Annotated[
        int | None,
        typer.Option(
            min=0,
            metavar="N",
            help="Keep also those of every so many epochs. Default: the run's checkpoint.keep_every.",
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what would be deleted.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Delete all but the last written checkpoints of a run.

    Every byte is verified first: damaged ones do not count, and are not deleted; nor is anything that
    hvdtrain did not write. Refused while a job uses the run.
    """
    from hvdtrain.run.pruning import prune as run_pruning

    with doing("verifying"):
        done = run_pruning(run, keep, keep_best, keep_every, dry_run=dry_run)
    if as_json:
        typer.echo(json.dumps({"dry_run": dry_run, **vars(done)}))
    else:
        typer.echo(_pruned_text(run, done, dry_run))
    if done.failed:
        raise ResourceError(f"{run}: {len(done.failed):,} not deleted: {done.failed[0]}")


def _size(size_bytes: int) -> str:
    return f"{size_bytes / 1e6:,.1f} MB"


def _shown(text: str) -> str:
    """Without characters that a terminal would obey."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def _date(unix_s: float) -> str:
    try:
        return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(unix_s))
    except (OverflowError, ValueError, OSError):  # a date that no clock shows
        return "-"


def _listing_text(entries: list[Entry]) -> str:
    head = ("name", "epoch", "image", "step", "size", "written", "")
    rows: list[tuple[str, ...]] = [head]
    for entry in entries:
        numbers = [
            "-" if number is None else f"{number:,}"
            for number in (entry.epoch, entry.sample, entry.step)
        ]
        written = _date(entry.written)
        mark = "newest" if entry.newest else "" if entry.kind == "checkpoint" else entry.kind
        kept = f"kept: {', '.join(entry.kept)}" if entry.kept else ""
        note = "; ".join(filter(None, (": ".join(filter(None, (mark, _shown(entry.note)))), kept)))
        rows.append((_shown(entry.name), *numbers, _size(entry.size_bytes), written, note))
    widths = [max(len(row[column]) for row in rows) for column in range(6)]
    lines = []
    for row in rows:
        cells = [row[0].ljust(widths[0])]
        cells += [row[column].rjust(widths[column]) for column in range(1, 6)]
        lines.append("  ".join([*cells, row[6]]).rstrip())
    return "\n".join(lines)


def _verdict_text(verdict: Verdict) -> str:
    if verdict.state == "damaged":
        return f"{_shown(verdict.path.name)}: damaged: {_shown(verdict.fault)}"
    return f"{_shown(verdict.path.name)}: {verdict.state}"


def _difference_text(a: Path, b: Path, found: Difference) -> str:
    lines = [f"A  {_shown(str(a))}", f"B  {_shown(str(b))}"]
    lines += _capped([f"  {_setting_text(one)}" for one in found.settings])
    for name, file in found.files.items():
        lines += _file_lines(name, file)
    if found.uncounted:
        texts = "; ".join(_setting_text(one) for one in found.uncounted)
        lines.append(f"not counted: {texts}")
    lines.append("equal" if found.equal else "different")
    return "\n".join(lines)


def _file_lines(name: str, file: FileDifference) -> list[str]:
    if file.equal:
        return [f"{name}: all {file.tensors:,} tensors are equal"]
    text = f"{name}: {len(file.differing):,} of {file.tensors:,} tensors differ"
    for counts, what in ((False, "largest difference"), (True, "largest difference of counts")):
        if (most := file.largest(counts=counts)) is not None:
            largest = "not finite" if most.largest is None else f"{most.largest:.6g}"
            text += f", {what} {largest} ({_shown(most.name)})"
    lines = [f"  only in A: {_shown(name)}" for name in file.only_a]
    lines += [f"  only in B: {_shown(name)}" for name in file.only_b]
    lines += [f"  {_setting_text(one)}" for one in file.forms]
    return [text, *_capped(lines)]


def _setting_text(one: Setting) -> str:
    return f"{_shown(one.key)} {_value(one.a)} → {_value(one.b)}"


def _value(value: Any) -> str:
    text = _shown(plain(value))
    return text if len(text) <= MOST_CHARACTERS else f"{text[: MOST_CHARACTERS - 1]}…"


def _capped(lines: list[str]) -> list[str]:
    more = len(lines) - MOST_LINES
    return [*lines[:MOST_LINES], f"  and {more:,} more (--json has all)"] if more > 0 else lines


def _pruned_text(run: Path, done: Pruned, dry_run: bool) -> str:
    verb = "would be deleted" if dry_run else "deleted"
    lines = [f"{verb}: {name}" for name in done.deleted]
    others = {name: why for name, why in done.reasons.items() if why[0] != "last"}
    lines += [f"kept: {name}: {', '.join(why)}" for name, why in others.items()]
    lines += [f"left: {_shown(name)}: {_shown(reason)}" for name, reason in done.left.items()]
    lines += [f"not deleted: {_shown(line)}" for line in done.failed]
    counts = f"{len(done.deleted):,} {verb} ({_size(done.deleted_bytes)})"
    return "\n".join([*lines, f"{_shown(str(run))}: {counts}, {len(done.kept):,} kept"])
