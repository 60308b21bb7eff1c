"""The files of a checkpoint, checked before anything in them is used.

A checkpoint is a folder that may come from anywhere: only files of known names are opened, only
regular ones, and only after `meta.json` was found to be what a run writes.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
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
ERRORS_FILE = "errors.safetensors"
"""What PowerSGD keeps from step to step: the error of every rank, and factors."""
OPTIONAL = (EMA_FILE, BUFFERS_FILE, MEASURES_FILE, ERRORS_FILE)
"""Files that not every checkpoint has."""
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
    loss: Number | None = None
    top1: Number | None = None
    top5: Number | None = None


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
        number = _unsealed(_meta_bytes(path), path / META).get("number", 0)
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
    return parse_meta(_meta_bytes(path), path / META)


def parse_meta(data: bytes, file: Path) -> dict[str, Any]:
    """The validated metadata in `data`, the content of `file`. Raises CheckpointError."""
    meta = _unsealed(data, file)
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
            f"{file}: not written by hvdtrain: {place or 'it'}: {first['msg'][:80]}; delete {file.parent} "
            "to go on from an older checkpoint"
        ) from None
    names = set(meta["sha256"])
    if not set(FILES) <= names <= {*FILES, *OPTIONAL}:
        shown = repr(", ".join(sorted(names))[:80])[1:-1]
        raise CheckpointError(
            f"{file}: not written by hvdtrain: sha256 names {shown or 'none'}, "
            f"expected {', '.join(FILES)} and perhaps {', '.join(OPTIONAL)}"
        )
    return meta


def _meta_bytes(path: Path) -> bytes:
    """The content of a checkpoint's `meta.json`, cut off beyond what is too long."""
    file = path / META
    try:
        with open_regular(file) as opened:
            return opened.read(MAX_META_BYTES + 1)
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be read: {error.strerror}") from None


def _unsealed(data: bytes, file: Path) -> dict[str, Any]:
    """The metadata in `data`, if its seal is right and every byte is as a run writes it."""
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
        raise CheckpointError(
            f"{file}: damaged; delete {file.parent} to go on from an older checkpoint"
        )
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
