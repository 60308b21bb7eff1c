"""A cache of the Hugging Face hub as its library writes it, and a hub of its own on this machine."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import safetensors.torch
from torch import Tensor

COMMIT = "0123456789abcdef0123456789abcdef01234567"
NEWER = "76543210fedcba9876543210fedcba9876543210"
TIMM = {
    "architecture": "resnet18",
    "num_classes": 1000,
    "pretrained_cfg": {
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
        "crop_pct": 0.95,
        "interpolation": "bicubic",
        "num_classes": 1000,
    },
}
"""A config.json of timm."""
TRANSFORMERS = {
    "model_type": "resnet",
    "layer_type": "basic",
    "depths": [2, 2, 2, 2],
    "embedding_size": 64,
    "hidden_act": "relu",
    "id2label": {"0": "cat", "1": "ant", "2": "bee"},
}
"""The same of transformers."""


def files_of(tensors: dict[str, Tensor], config: dict[str, Any] | None = None) -> dict[str, bytes]:
    """The files of a repository."""
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    files = {"model.safetensors": safetensors.torch.save(tensors)}
    return files | ({"config.json": json.dumps(config).encode()} if config else {})


def etag(name: str, data: bytes) -> str:
    """What the hub calls the content of a file: git's sha1, or the sha256 of a large one."""
    if name.endswith(".json"):
        return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
    return hashlib.sha256(data).hexdigest()


def put_in_cache(
    cache: Path, repository: str, files: dict[str, bytes], commit: str = COMMIT
) -> Path:
    """Write what a download of `files` at the branch main leaves; returns the folder of the commit."""
    root = cache / f"models--{repository.replace('/', '--')}"
    snapshot = root / "snapshots" / commit
    for folder in (root / "refs", root / "blobs", snapshot):
        folder.mkdir(parents=True, exist_ok=True)
    (root / "refs/main").write_text(commit)
    for name, data in files.items():
        (root / "blobs" / etag(name, data)).write_bytes(data)
        (snapshot / name).symlink_to(f"../../blobs/{etag(name, data)}")
    return snapshot


@dataclass
class Hub:
    """What the server answers."""

    address: str = ""
    repositories: dict[str, dict[str, bytes]] = field(default_factory=dict)
    refuse: tuple[int, str] | None = None
    """Status and X-Error-Code of every answer."""
    cut: bool = False
    """Files end in the middle."""
    sizes: dict[str, int] = field(default_factory=dict)
    """Said of files in place of what they have."""
    asked: list[str] = field(default_factory=list)


@contextmanager
def serving() -> Iterator[Hub]:
    """A hub on a free port of this machine."""
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None: ...

        def do_HEAD(self) -> None:
            self.answer()

        def do_GET(self) -> None:
            self.answer()

        def fail(self, status: int, code: str) -> None:
            self.send_response(status)
            self.send_header("X-Error-Code", code)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def answer(self) -> None:
            path = unquote(urlsplit(self.path).path)
            hub.asked.append(f"{self.command} {path}")
            if hub.refuse:
                return self.fail(*hub.refuse)
            words = path.strip("/").removeprefix("api/models/").split("/")
            files = hub.repositories.get("/".join(words[:2]))
            if files is None:
                return self.fail(404, "RepoNotFound")
            if len(words) > 3 and words[3] not in ("main", COMMIT):
                return self.fail(404, "RevisionNotFound")
            if path.startswith("/api/"):
                siblings = [
                    {"rfilename": name, "size": hub.sizes.get(name, len(data))}
                    for name, data in files.items()
                ]
                about = {"id": "/".join(words[:2]), "sha": COMMIT, "siblings": siblings}
                return self.send(json.dumps(about).encode(), "x")
            name = words[4]
            if name not in files:
                return self.fail(404, "EntryNotFound")
            return self.send(files[name], etag(name, files[name]))

        def send(self, data: bytes, tag: str) -> None:
            self.send_response(200)
            self.send_header("ETag", f'"{tag}"')
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if self.command == "GET":
                cut = hub.cut and tag != "x"
                self.wfile.write(data[: len(data) // 2] if cut else data)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    hub.address = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
