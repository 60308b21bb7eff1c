"""A file, what reads it, and how it is damaged below checksums."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from hvdtrain.config.load import load_config
from hvdtrain.config.schema import Config
from tests.unit.fuzz.mutations import Change, changed

CONFIG = """# A run
name: t
data: {train: images, val: images, mean: [0.4, 0.4, 0.4], columns: {path: file}}
model: &m {name: resnet8_cifar, freeze: [stem]}
lr: {base: 0.4, warmup: none, schedule: piecewise, points: [[0, 0.1], [3, 1.0e+0]]}
phases:
  - {epochs: 6, image_size: [16, 32], batch_per_worker: 16}
  - epochs: 6
    unfreeze: ["stem"]
train: {rollbacks: 2, loss_scale: dynamic}
metrics: {bind: 127.0.0.1, pushgateway: "http://a:9091"}
"""
Mutate = Callable[[bytes, list[Change]], bytes]


class Reader(NamedTuple):
    """One file and what reads it."""

    file: Path
    read: Callable[[], object]
    mutate: Mutate = changed


def in_zip(content: bytes, changes: list[Change]) -> bytes:
    """A zip file with a changed member, whose checksum is right."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    name = sorted(members)[changes[0].length % len(members)]
    members[name] = changed(members[name], changes)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for each, data in members.items():
            archive.writestr(each, data)
    return buffer.getvalue()


def sealed(content: bytes, changes: list[Change]) -> bytes:
    """The metadata of a checkpoint, changed and sealed as if hvdtrain had written them."""
    meta = changed(json.dumps(json.loads(content)["meta"], sort_keys=True).encode(), changes)
    try:
        body = json.dumps(json.loads(meta), sort_keys=True).encode()
    except (ValueError, RecursionError):
        body = meta
    return b'{"meta": %s, "seal": "%s"}' % (body, hashlib.sha256(body).hexdigest().encode())


def load_config_text(root: Path, text: str) -> Config:
    (root / "config.yaml").write_text(text)
    return load_config(root / "config.yaml")
