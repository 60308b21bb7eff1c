"""What a run directory says of the images that its run used. Needs no torch."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hvdtrain.checkpoint_files import list_checkpoints, read_meta
from hvdtrain.errors import CheckpointError
from hvdtrain.paths import RunPaths
from hvdtrain.report.events import whole
from pipelines.sources.arrays import DamagedError, read_arrays


@dataclass(frozen=True)
class About:
    """What `dataset.npz` says of its lists, or a checkpoint of the datasets, by `train` and `val`."""

    fingerprints: dict[str, str] = field(default_factory=dict)
    """Hashes of names, labels and order."""
    accepted: list[str] = field(default_factory=list)
    """Changes that --accept-changes has let pass, one line each."""
    images: dict[str, int] = field(default_factory=dict)
    """Their numbers, where they are known."""


def read_about(file: Path) -> About:
    """The description in a `dataset.npz`, without numbers of images. Raises DamagedError."""
    try:
        about = json.loads(read_arrays(file, "about")["about"].tobytes())
        fingerprints, accepted = dict(about["fingerprints"]), list(about["accepted"])
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise DamagedError(f"damaged ({type(error).__name__})") from None
    if not all(isinstance(text, str) for text in (*fingerprints.values(), *accepted)):
        raise DamagedError("damaged (a fingerprint is no text)")
    return About(fingerprints, accepted)


def recorded_images(paths: RunPaths) -> About:
    """Of `dataset.npz`, else of the newest checkpoint that can be read; empty if there is neither."""
    found = _of_checkpoint(paths)
    if paths.dataset.is_file():
        try:
            about = read_about(paths.dataset)
        except DamagedError:
            return found
        return About(about.fingerprints, about.accepted, found.images)
    return found


def _of_checkpoint(paths: RunPaths) -> About:
    for path in list_checkpoints(paths.checkpoints):
        try:
            data: dict[str, Any] = read_meta(path).get("data", {})
        except CheckpointError:
            continue
        kinds = {kind: data[kind] for kind in ("train", "val") if data.get(kind)}
        images = {kind: n for kind, each in kinds.items() if (n := whole(each, "images"))}
        fingerprints = {kind: each["fingerprint"] for kind, each in kinds.items()}
        return About(fingerprints, list(data.get("accepted", [])), images)
    return About()
