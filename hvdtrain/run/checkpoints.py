"""The checkpoints of a run directory: listed and verified, without torch."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from hvdtrain.checkpoint_files import LEFTOVER, META, NAME, list_checkpoints, read_meta, verify
from hvdtrain.checkpoint_keep import Keep, why_kept
from hvdtrain.config.load import load_config
from hvdtrain.config.schema import Config
from hvdtrain.errors import CheckpointError, ConfigError, HvdtrainError
from hvdtrain.paths import RunPaths, run_root

SET_ASIDE = re.compile(rf"damaged-{NAME.pattern}(?:-\d+)?")
"""What a damaged checkpoint is renamed to when a run goes on from an older one."""
Kind = Literal["checkpoint", "damaged", "set aside", "unfinished", "half deleted", "other"]


@dataclass(frozen=True)
class Entry:
    """One name in the folder of checkpoints. Only its metadata were read."""

    name: str
    kind: Kind
    newest: bool
    """A resumed run tries it first."""
    epoch: int | None
    sample: int | None
    """Images of the epoch, of all ranks, that were trained."""
    step: int | None
    size_bytes: int
    written: float
    """Unix time of its metadata file, or of the folder without one."""
    note: str = ""
    kept: list[str] = field(default_factory=list)
    """Why the run does not delete it; empty as well if the run's settings are not known."""

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Verdict:
    """What the check of every byte has found."""

    path: Path
    state: Literal["ok", "damaged", "deleted meanwhile"]
    fault: str = ""

    def as_dict(self) -> dict[str, str]:
        """For JSON."""
        return {**asdict(self), "path": str(self.path)}


def to_keep(cfg: Config) -> Keep:
    """What a run with these settings keeps."""
    settings = cfg.checkpoint
    return Keep(
        settings.keep,
        settings.keep,
        settings.keep_best,
        settings.keep_every,
        lowest_loss=cfg.train.patience is not None,
        start=settings.keep_start or cfg.metrics.weights,
    )


def listing(path: Path) -> list[Entry]:
    """Everything in the folder of checkpoints of the run `path`: checkpoints, the newest first, then
    the rest by name. Raises CheckpointError if there is no such folder."""
    folder = folder_of(path)
    try:
        found = list_checkpoints(folder)
        rest = sorted(set(folder.iterdir()) - set(found))
    except OSError as error:
        raise CheckpointError(f"{folder}: cannot be read: {error.strerror}") from None
    reasons: dict[Path, list[str]] = {}
    with contextlib.suppress(HvdtrainError):  # ls shows the rest without the run's settings
        reasons = why_kept(found, to_keep(load_config(RunPaths(folder.parent).config)))
    entries: list[Entry] = []
    for each in [*found, *rest]:
        with contextlib.suppress(FileNotFoundError):  # a job may delete it meanwhile
            entry = _entry(each, newest=not entries)
            kept = reasons.get(each, []) if entry.kind == "checkpoint" else []
            entries.append(replace(entry, kept=kept))
    return entries


def to_verify(path: Path, *, every: bool) -> list[Path]:
    """The checkpoint `path`, or of a run the newest and those whose metadata are damaged, or every.

    Raises CheckpointError if there is none.
    """
    if is_checkpoint(path):
        if every:
            raise ConfigError(f"--all {path}: one checkpoint, expected a run directory")
        return [path]
    found = _checkpoints(path)
    # Without metadata nobody knows which is the newest.
    return found if every else [each for each in found if each == found[0] or _fault(each)]


def check(path: Path) -> Verdict:
    """Read every byte of a checkpoint."""
    try:
        verify(path)
    except CheckpointError as error:
        if not path.exists():
            return Verdict(path, "deleted meanwhile")
        return Verdict(path, "damaged", str(error))
    return Verdict(path, "ok")


def one_of(path: Path) -> Path:
    """The checkpoint `path`, or the newest of the run `path`. Raises CheckpointError."""
    return path if is_checkpoint(path) else _checkpoints(path)[0]


def folder_of(path: Path) -> Path:
    """The folder of checkpoints of a run, which may be named by a checkpoint. Raises CheckpointError."""
    try:
        folder = RunPaths(run_root(path)).checkpoints
        path.stat()
        if folder.is_dir():
            return folder
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from None
    raise CheckpointError(
        f"{path}: neither a run directory nor a checkpoint: it has no folder {folder.name}"
    )


def _checkpoints(path: Path) -> list[Path]:
    folder = folder_of(path)
    found = list_checkpoints(folder)
    if not found:
        raise CheckpointError(f"{folder}: no checkpoint")
    return found


def is_checkpoint(path: Path) -> bool:
    """Whether a checkpoint is named, even if it is damaged. Raises CheckpointError if it is missing."""
    name = Path(os.path.abspath(path)).name  # noqa: PTH100 - keeps links
    patterns = (NAME, SET_ASIDE, LEFTOVER)
    try:
        named = any(pattern.fullmatch(name) for pattern in patterns)
        if named and not path.exists():
            raise CheckpointError(f"{path}: no such checkpoint")
        return named or (path / META).is_file()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from None


def _fault(path: Path) -> str:
    """What is wrong with the metadata of a checkpoint; empty if nothing is."""
    try:
        read_meta(path)
    except CheckpointError as error:
        return str(error)
    return ""


def _entry(path: Path, *, newest: bool) -> Entry:
    """Raises FileNotFoundError."""
    kind, note = _kind(path)
    written = path.lstat().st_mtime
    with contextlib.suppress(OSError):
        written = (path / META).lstat().st_mtime
    epoch, sample, step = _position(path) if kind != "other" else (None, None, None)
    is_newest = newest and kind == "checkpoint"
    return Entry(path.name, kind, is_newest, epoch, sample, step, size_of(path), written, note)


def _kind(path: Path) -> tuple[Kind, str]:
    """What a name in the folder is, and what there is to say of it."""
    if NAME.fullmatch(path.name) and path.is_dir():
        if fault := _fault(path):
            return "damaged", fault
        return "checkpoint", "a link" if path.is_symlink() else ""
    if SET_ASIDE.fullmatch(path.name):
        return "set aside", "damaged when a run went on from an older one"
    if not LEFTOVER.fullmatch(path.name):
        return "other", "not of hvdtrain, never deleted"
    if path.name.endswith(".part"):
        return "unfinished", "being written, or left by a job that was killed"
    return "half deleted", "being deleted, or left by a job that was killed"


def _position(path: Path) -> tuple[int | None, int | None, int | None]:
    """Epoch, sample and step, by the metadata if they can be read, else by the name."""
    try:
        meta = read_meta(path)
    except CheckpointError:
        named = NAME.search(path.name)
        return (int(named[1]), int(named[2]), None) if named else (None, None, None)
    return meta["position"]["epoch"], meta["position"]["sample"], meta["step"]


def size_of(path: Path) -> int:
    """Bytes of all files; links are not followed, and what vanishes meanwhile is not counted."""
    return sum(_sizes(path))


def _sizes(path: Path) -> Iterator[int]:
    if path.is_symlink() or not path.is_dir():
        yield path.lstat().st_size
        return
    for folder, _, names in os.walk(path):
        for name in names:
            with contextlib.suppress(OSError):
                yield (Path(folder) / name).lstat().st_size
