"""Small runs on made images, for tests of what a run knows of its data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml
from PIL import Image

from hvdtrain.comm.ranks import Solo
from hvdtrain.config.load import parse_config
from hvdtrain.config.schema import Config
from hvdtrain.engine.checkpoint import list_checkpoints
from hvdtrain.train import train

COLOURS = {"ant": (250, 0, 0), "bee": (0, 250, 0), "cat": (0, 0, 250)}


def write(root: Path, names: list[str], count: int = 4, begin: int = 0) -> None:
    """Class folders with images of one colour, slightly different from each other."""
    for name in names:
        (root / name).mkdir(parents=True, exist_ok=True)
        for k in range(begin, begin + count):
            colour = tuple(max(0, min(255, value + k)) for value in COLOURS[name])
            Image.new("RGB", (20, 16), colour).save(root / name / f"{k}.jpg")


def config(root: Path, epochs: int = 1, more: str = "") -> Config:
    return parse_config(
        f"data: {{train: {root}/train, val: {root}/val, augment: none, flip: false, "
        f"decode_threads: 1{more}}}\n"
        "model: {name: resnet8_cifar}\nmetrics: {enabled: false}\n"
        "lr: {base: 0.01, warmup: none, schedule: constant}\ntrain: {log_every: 1}\n"
        f"phases: [{{epochs: {epochs}, image_size: 16, batch_per_worker: 4}}]\n"
    )


def split_config(root: Path, epochs: int = 1, *settings: str) -> Config:
    """The same for a third of the training images held out."""
    text = yaml.safe_dump(config(root, epochs).model_dump())
    return parse_config(text, overrides=["data.val=0.34", *settings])


def resume(work: Path, *, accept: bool = False, epochs: int = 2) -> dict[str, Any]:
    return train(config(work, epochs), Solo(), resume=str(work / "run"), accept_changes=accept)


def notes(work: Path) -> list[str]:
    lines = map(json.loads, (work / "run/events.jsonl").read_text().splitlines())
    return [event["text"] for event in lines if event["kind"] == "note"]


def edit_meta(work: Path, **changes: Any) -> None:
    """Change a checkpoint's metadata as another version would have written it."""
    import hashlib

    file = list_checkpoints(work / "run/checkpoints")[0] / "meta.json"
    meta = {**json.loads(file.read_bytes())["meta"], **changes}
    meta = {key: value for key, value in meta.items() if value is not None}
    body = json.dumps(meta, sort_keys=True)
    seal = hashlib.sha256(body.encode()).hexdigest()
    file.write_text(json.dumps({"meta": meta, "seal": seal}))


BASE = """
name: t
lr: {warmup: none, schedule: constant}
phases:
  - {epochs: 2, image_size: 16, batch_per_worker: 8}
  - {epochs: 4, image_size: [16, 48], size_multiple: 8, batch_per_worker: 4}
"""


def changed(*settings: str, base: str = BASE) -> Config:
    return parse_config(base, overrides=list(settings))
