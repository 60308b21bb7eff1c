"""The files of a checkpoint, checked before anything in them is used.

A checkpoint is a folder that may come from anywhere: only files of known names are opened, only
regular ones, and only after `meta.json` was found to be what a run writes.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from hvdtrain.errors import CheckpointError
from hvdtrain.files import open_regular

FORMAT = 1
META = "meta.json"
MODEL_FILE = "model.safetensors"
FILES = (MODEL_FILE, "optimizer.safetensors")
EMA_FILE = "ema.safetensors"
BUFFERS_FILE = "buffers.safetensors"
"""The batch-norm statistics of every rank, where they differ."""
MEASURES_FILE = "measures.safetensors"
"""What `metrics.weights` has measured of an epoch that is not complete."""
NEW = "-new"
"""Ending of a checkpoint that takes the place of one at the same position, until that is gone."""
NAME = re.compile(rf"e(\d{{4,}})-s(\d{{10,}})(?:{NEW})?")
"""What a checkpoint's folder is called, by epoch and sample: no other folder is ever deleted."""
START = re.compile(rf"e0000-s0000000000(?:{NEW})?")
"""That of a run that has made no update."""
LEFTOVER = re.compile(rf"\.{NAME.pattern}\.(?:part|gone)")
"""Folders of a checkpoint that is being written or deleted."""
MAX_META_BYTES = 2**26
"""Far more than the names of a million classes."""

Count = Annotated[int, Field(strict=True, ge=0, lt=2**62)]
Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid")


class _Position(_Part):
    epoch: Count
    sample: Count


class _NoiseScale(_Part):
    trace: Number = 0.0
    square: Number = 0.0
    measured: Count = 0


class _Evaluated(_Part):
    step: Annotated[int, Field(strict=True, ge=-1, lt=2**62)] = -1
    best_loss: Number | None = None
    best_epoch: Number = 0.0
    best_step: Count = 0
    since_best: Count = 0


class _Scaler(_Part):
    scale: Number
    growth_factor: Number
    backoff_factor: Number
    growth_interval: Count
    growth_tracker: Annotated[int, Field(strict=True, ge=0, lt=2**31, alias="_growth_tracker")]


class _NoScaler(_Part):
    pass


class _Images(BaseModel):
    """A dataset, of which a fingerprint is compared."""

    fingerprint: str


class _Data(BaseModel):
    classes: list[str] = []
    accepted: list[str] = []
    train: _Images | None = None
    val: _Images | None = None


class _Labels(BaseModel):
    train_images: Count | None = None


class _Meta(BaseModel):
    """What a run writes. Later versions may write more."""

    format: Literal[1]
    position: _Position
    step: Count
    samples: Count
    train_seconds: Number
    world_size: Count = 1
    number: Count = 0
    top1: Number | None = None
    loss: Number | None = None
    evaluated: _Evaluated = _Evaluated()
    scaler: _NoScaler | _Scaler
    noise_scale: _NoiseScale = _NoiseScale()
    labels: _Labels
    data: _Data = _Data()
    sha256: dict[str, Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]]


def list_checkpoints(directory: Path) -> list[Path]:
    """Complete checkpoints in `directory`, the last written first; not verified.

    Those of versions that did not number them come after, the furthest position first, and those
    whose metadata are damaged last.
    """
    found = [path for path in directory.glob("e*-s*/") if NAME.fullmatch(path.name)]
    return sorted(found, key=_order, reverse=True)


def next_number(directory: Path) -> int:
    """One more than the number of every checkpoint in `directory`."""
    return 1 + max((_order(path)[0] for path in list_checkpoints(directory)[:1]), default=0)


@dataclass(frozen=True)
class Keep:
    """Which checkpoints stay when a new one is there; each number may be 0 but the first."""

    last: int
    """Written last."""
    ends: int = 0
    """Of those at the end of an epoch, written last: those in mid-epoch come by the minute, and would
    leave no history."""
    best: int = 0
    """Of the highest top-1 accuracy; of equal ones the later."""
    every: int = 0
    """At the end of every so many epochs, for good."""
    lowest_loss: bool = False
    """That of the lowest validation loss; of equal ones the first."""
    start: bool = False
    """That before the first update."""


def why_kept(found: list[Path], keep: Keep) -> dict[Path, list[str]]:
    """The reasons to keep each of `found`, which are ordered as by `list_checkpoints`; those without a
    reason have no entry."""
    reasons: dict[Path, list[str]] = {}

    def add(paths: list[Path], reason: str) -> None:
        for path in paths:
            reasons.setdefault(path, []).append(reason)

    ends = {path: epoch for path in found if (epoch := _epoch_at_end(path)) is not None}
    add(found[: keep.last], "last")
    add([*ends][: keep.ends], "epoch end")
    if keep.best:
        by_top1 = [(value, path) for path in found if (value := _result(path, "top1")) is not None]
        for value, path in sorted(by_top1, key=lambda pair: -pair[0])[: keep.best]:
            add([path], f"best, top-1 {100 * value:.2f} %")
    if keep.lowest_loss:
        losses = [(loss, path) for path in found if (loss := _result(path, "loss")) is not None]
        if lowest := min(reversed(losses), key=lambda pair: pair[0], default=None):
            add([lowest[1]], f"lowest validation loss {lowest[0]:.4f}")
    if keep.every:
        chosen = [path for path, epoch in ends.items() if epoch and epoch % keep.every == 0]
        add(chosen, "every epoch" if keep.every == 1 else f"every {keep.every:,} epochs")
    add([path for path in found if keep.start and START.fullmatch(path.name)], "start")
    return reasons


def _epoch_at_end(path: Path) -> int | None:
    """Epochs done of a checkpoint at the end of one; None in mid-epoch."""
    matched = NAME.fullmatch(path.name)
    return int(matched[1]) if matched and not int(matched[2]) else None


def _result(path: Path, key: str) -> float | None:
    """Of the evaluation before the checkpoint was written, `top1` (0-1) or `loss`; None without one."""
    try:
        value = read_meta(path).get(key)
    except CheckpointError:
        return None
    return None if value is None else float(value)


def remove(path: Path) -> None:
    """Delete a checkpoint. If killed in between, nothing is left that looks like one."""
    if path.exists():
        gone = path.with_name(f".{path.name}.gone")
        shutil.rmtree(gone, ignore_errors=True)
        path.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)


def _order(path: Path) -> tuple[int, int, int, str]:
    """Number, epoch and sample of a checkpoint, and its name."""
    matched = NAME.fullmatch(path.name)
    epoch, sample = map(int, matched.groups()) if matched else (0, 0)
    try:
        number = _unsealed(path).get("number", 0)
    except CheckpointError:
        number = -1
    return number if isinstance(number, int) else 0, epoch, sample, path.name


def verify(path: Path) -> dict[str, Any]:
    """Check every byte of a checkpoint and return its metadata.

    Raises CheckpointError that names the damaged file and what is wrong with it.
    """
    meta = read_meta(path)
    for name in sorted(meta["sha256"]):
        found = _digest(path / name)
        if found != meta["sha256"][name]:
            raise CheckpointError(
                f"{path / name}: damaged: sha256 is {found[:12]}…, "
                f"written was {meta['sha256'][name][:12]}…; delete {path} to go on from an older one"
            )
    return meta


def read_meta(path: Path) -> dict[str, Any]:
    """The validated metadata of a checkpoint; its other files are not read. Raises CheckpointError."""
    file = path / META
    meta = _unsealed(path)
    written = meta.get("format")
    if isinstance(written, int) and written != FORMAT:
        raise CheckpointError(
            f"{file}: format {str(written)[:20]}, this version reads {FORMAT}: use the hvdtrain "
            "that wrote it"
        )
    try:
        _Meta.model_validate(meta)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = repr(".".join(str(part) for part in first["loc"][:2])[:60])[1:-1]
        raise CheckpointError(
            f"{file}: not written by hvdtrain: {place or 'it'}: {first['msg'][:80]}; delete {path} "
            "to go on from an older checkpoint"
        ) from None
    names = set(meta["sha256"])
    if not set(FILES) <= names <= {*FILES, EMA_FILE, BUFFERS_FILE, MEASURES_FILE}:
        shown = repr(", ".join(sorted(names))[:80])[1:-1]
        raise CheckpointError(
            f"{file}: not written by hvdtrain: sha256 names {shown or 'none'}, "
            f"expected {', '.join(FILES)} and perhaps {EMA_FILE}, {BUFFERS_FILE} and "
            f"{MEASURES_FILE}"
        )
    return meta


def _unsealed(path: Path) -> dict[str, Any]:
    """The content of `meta.json`, if its seal is right and every byte is as a run writes it."""
    file = path / META
    try:
        with open_regular(file) as opened:
            data = opened.read(MAX_META_BYTES + 1)
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be read: {error.strerror}") from None
    if len(data) > MAX_META_BYTES:
        raise CheckpointError(f"{file}: not written by hvdtrain: longer than 64 MiB")
    try:
        sealed = json.loads(data)
        meta = sealed["meta"]
        body = json.dumps(meta, sort_keys=True)
        whole = hashlib.sha256(body.encode()).hexdigest() == sealed["seal"]
        whole &= json.dumps(sealed).encode() == data  # not a blank more, 1e-08 not as 1E-08
    except (ValueError, LookupError, TypeError, RecursionError):
        whole = False
    if not whole:
        raise CheckpointError(f"{file}: damaged; delete {path} to go on from an older checkpoint")
    if not isinstance(meta, dict):
        raise CheckpointError(f"{file}: not written by hvdtrain: {META} holds no dictionary")
    return meta


def _digest(file: Path) -> str:
    digest = hashlib.sha256()
    try:
        with open_regular(file) as opened:
            while chunk := opened.read(2**20):
                digest.update(chunk)
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be read: {error.strerror}") from None
    return digest.hexdigest()
