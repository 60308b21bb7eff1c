"""What `hvdtrain predict` reads beside runs and images, and the note of what was staged from a server."""

from __future__ import annotations

import json
from pathlib import Path

import safetensors.torch
import torch

from hvdtrain.config.schema import Model
from hvdtrain.inference.description import KEY, Description
from hvdtrain.inference.given_images import find_images
from hvdtrain.inference.opened import open_model
from hvdtrain.models import build_model
from pipelines.commands.stage_remote import RECORD, read_record
from tests.unit.fuzz.mutations import Change, changed
from tests.unit.fuzz.reader import Reader
from tests.unit.fuzz.run_seeds import header
from tests.unit.inference.conftest import SMALL

LENGTH = 8
"""Bytes at the start of a safetensors file: the length of the JSON that follows."""


def in_metadata(content: bytes, changes: list[Change]) -> bytes:
    """An exported file with changes in its description of the network alone."""
    end = LENGTH + int.from_bytes(content[:LENGTH], "little")
    about = json.loads(content[LENGTH:end])
    text = changed(about["__metadata__"][KEY].encode(), changes).decode(errors="replace")
    about["__metadata__"][KEY] = text
    head = json.dumps(about).encode()
    return len(head).to_bytes(LENGTH, "little") + head + content[end:]


def inference(root: Path) -> dict[str, Reader]:
    """Readers of lists of images, exported networks and the note of staged shards."""
    (root / "images.csv").write_text('id,file path\n1,"a b.jpg"\n2,c/é.png\n')
    (root / "images.txt").write_text("a b.jpg\nc/é.png\n\n/d.jpg\n")
    model = Model(name="resnet8_gn")
    about = Description(model=model, num_classes=2, classes=["a", "b"], preprocessing=SMALL)
    exported, record = root / "net.safetensors", root / RECORD
    tensors = dict(build_model(model, 2).state_dict())
    safetensors.torch.save_file(tensors, exported, about.metadata())
    record.write_text(json.dumps({"a.tar": ["0" * 32, 7], "classes.txt": ["1" * 32, 2**31]}))

    def opened() -> object:
        return open_model(exported, torch.device("cpu"))

    return {
        "images.csv": Reader(root / "images.csv", lambda: find_images([root / "images.csv"], [])),
        "images.txt": Reader(root / "images.txt", lambda: find_images([root / "images.txt"], [])),
        "exported header": Reader(exported, opened, header),
        "in exported metadata": Reader(exported, opened, in_metadata),
        "staged record": Reader(record, lambda: read_record(root)),
    }
