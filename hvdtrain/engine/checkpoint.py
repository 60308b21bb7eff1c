"""Checkpoints that are complete or absent, and verified bit by bit before they are used.

A checkpoint is a directory with the weights, the optimizer state and, if the run keeps them, the
averaged weights as safetensors, and `meta.json` with the progress of the run and the sha256 of
every other file. It is written under another name and renamed when all its bytes are on the disk.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hvdtrain.checkpoint_files import (
    BUFFERS_FILE,
    EMA_FILE,
    FILES,
    FORMAT,
    LEFTOVER,
    META,
    NAME,
    NEW,
    list_checkpoints,
    next_number,
    remove,
    verify,
)
from hvdtrain.checkpoint_keep import Keep, why_kept
from hvdtrain.engine.checkpoint_tensors import (
    check_fit,
    check_labels,
    no_averages,
    read_tensors,
)
from hvdtrain.engine.evaluate import rank_buffers
from hvdtrain.engine.noise_scale import NoiseScale
from hvdtrain.engine.progress import Progress
from hvdtrain.engine.step import State
from hvdtrain.engine.tensor_file import write_tensors
from hvdtrain.errors import ResourceError
from hvdtrain.files import sync_folder, whole_file
from hvdtrain.optim import optimizer_tensors
from hvdtrain.plan.epochs import Position

__all__ = ["list_checkpoints", "load_checkpoint", "save_checkpoint", "verify"]


RANKS = "ranks"
"""Name of the tensor in BUFFERS_FILE."""
Tensors = dict[str, dict[str, torch.Tensor]]
"""The tensors of each file of a checkpoint."""


@dataclass(frozen=True)
class Saved:
    """A checkpoint that was written."""

    path: Path
    size: int
    """In bytes."""
    kept: list[str]
    """What is left of older ones that cannot be deleted, one line each."""


def save_checkpoint(
    state: State,
    directory: Path,
    keep: int,
    labels: dict[str, Any],
    about: dict[str, Any] | None = None,
) -> Path:
    """Write the present state, and keep the last `keep` and as many ends of an epoch; returns the path.

    `labels` (such as model and classes) are compared on load; `about` is only kept. Call it on one
    rank only.
    """
    files = {
        name: {key: tensor.cpu() for key, tensor in tensors.items()}
        for name, tensors in contents(state).items()
    }
    return write_checkpoint(files, metadata(state, labels, about), directory, Keep(keep, keep)).path


def metadata(
    state: State, labels: dict[str, Any], about: dict[str, Any] | None = None
) -> dict[str, Any]:
    """What a checkpoint says of the present state, but for its files."""
    return {
        "format": FORMAT,
        **state.progress.as_dict(),
        "world_size": state.comm.size,
        "scaler": state.scaler.state_dict(),
        "noise_scale": state.noise.scale.state(),
        "labels": labels,
        **(about or {}),
    }


def checkpoint_name(at: Position) -> str:
    """The name of the checkpoint of a position."""
    return f"e{at.epoch:04d}-s{at.sample:010d}"


def write_checkpoint(files: Tensors, meta: dict[str, Any], directory: Path, keep: Keep) -> Saved:
    """Write `directory/e<epoch>-s<sample>`, then delete the checkpoints that are not to `keep`.

    `files` are on the CPU. Whenever it is killed, a checkpoint of the same position
    is there as it was, or as it is now. Raises ResourceError if the disk refuses; older checkpoints
    are then untouched.
    """
    at = meta["position"]
    final = directory / checkpoint_name(Position(**at))
    part = directory / f".{final.name}.part"
    try:
        settle(final.with_name(final.name + NEW))
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        digests, size = {}, 0
        for name, tensors in files.items():
            with whole_file(part / name) as file:
                digests[name], length = write_tensors(file, tensors)
            size += length
        sealed = _sealed({**meta, "number": next_number(directory), "sha256": digests})
        with whole_file(part / META) as file:
            file.write(sealed)
        place = put_in_place(part, final)
    except OSError as error:
        shutil.rmtree(part, ignore_errors=True)
        raise ResourceError(
            f"{final}: checkpoint not written: {error.strerror or error}; "
            "the older checkpoints are untouched"
        ) from None
    kept = _prune(place, keep)
    return Saved(final if final.exists() else place, size + len(sealed), kept)


def put_in_place(part: Path, final: Path) -> Path:
    """Give a complete checkpoint its name, or another one that `settle` changes to it, which is returned.

    Raises OSError.
    """
    place = final.with_name(final.name + NEW)
    part.rename(place if final.exists() else final)
    sync_folder(final.parent)
    return place


def _prune(place: Path, keep: Keep) -> list[str]:
    """Delete what a new checkpoint, perhaps at `place`, makes superfluous; tells what cannot be."""
    kept: list[str] = []
    with _told(kept, place):
        settle(place)
    found = list_checkpoints(place.parent)
    reasons = why_kept(found, keep)
    for old in found:
        if old not in reasons:
            with _told(kept, old):
                remove(old)
    return kept


@contextlib.contextmanager
def _told(lines: list[str], path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        lines.append(f"{error.filename or path}: cannot be deleted: {error.strerror}")


def sweep(directory: Path) -> None:
    """Finish what a killed job was about to write or delete. Raises nothing."""
    for path in directory.glob("e*-s*/"):
        if NAME.fullmatch(path.name) and path.name.endswith(NEW):
            with contextlib.suppress(OSError):
                settle(path)
    for path in directory.glob(".e*-s*/"):
        if LEFTOVER.fullmatch(path.name):
            shutil.rmtree(path, ignore_errors=True)


def settle(place: Path) -> None:
    """Let the checkpoint `place`, if it is there, take the place of the one of its position."""
    if place.exists():
        final = place.with_name(place.name.removesuffix(NEW))
        remove(final)
        place.rename(final)


def contents(state: State) -> dict[str, dict[str, torch.Tensor]]:
    """The tensors of each file, sharing memory with `state`."""
    contents = {
        FILES[0]: dict(state.model.state_dict()),
        FILES[1]: optimizer_tensors(state.model, state.optimizer),
    }
    if state.ema is not None:
        contents[EMA_FILE] = state.ema.tensors
    return contents


def load_checkpoint(state: State, path: Path, meta: dict[str, Any], labels: dict[str, Any]) -> None:
    """Load a checkpoint into `state`; `meta` is what `verify` returned for it.

    Raises CheckpointError if it belongs to another run or model; `state` is then untouched.
    """
    check_labels(path, meta, labels)
    targets = contents(state)
    if missing := sorted(targets.keys() - meta["sha256"].keys()):
        raise no_averages(path, missing[0])
    loaded = {name: read_tensors(path / name) for name in targets}
    for name, target in targets.items():
        check_fit(path / name, loaded[name], target)
    with torch.no_grad():
        for name, target in targets.items():
            for key, tensor in target.items():
                tensor.copy_(loaded[name][key])
    if state.scaler.is_enabled() and meta["scaler"]:
        state.scaler.load_state_dict(meta["scaler"])
    state.noise.scale = NoiseScale(**meta.get("noise_scale", {}))
    state.progress = Progress.from_dict(meta)


def load_buffers(state: State, path: Path, meta: dict[str, Any]) -> torch.Tensor | None:
    """The statistics of every rank [ranks, n] in a checkpoint that was loaded, see `rank_buffers`.

    None if all had the same, or if their number was another. Raises CheckpointError if they are of
    another model.
    """
    if BUFFERS_FILE not in meta["sha256"] or meta.get("world_size") != state.comm.size:
        return None
    target = torch.empty(state.comm.size, sum(b.numel() for b in rank_buffers(state)))
    loaded = read_tensors(path / BUFFERS_FILE)
    if (EMA_FILE in meta["sha256"]) != (state.ema is not None):
        return None  # the averages have statistics, too: all ranks begin with the mean
    check_fit(path / BUFFERS_FILE, loaded, {RANKS: target})
    return loaded[RANKS].float()


def _sealed(meta: dict[str, Any]) -> bytes:
    body = json.dumps(meta, sort_keys=True)
    return json.dumps({"meta": meta, "seal": hashlib.sha256(body.encode()).hexdigest()}).encode()
