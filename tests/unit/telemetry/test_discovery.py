"""Addresses that dead runs have left for Prometheus."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import cast

from hvdtrain.telemetry import discovery
from hvdtrain.telemetry.discovery import KEEP_S
from hvdtrain.telemetry.sinks import Sinks
from tests.launch import free_port


class Told:
    def __init__(self) -> None:
        self.texts: list[str] = []

    def write(self, report: object) -> None:
        self.texts.append(getattr(report, "text"))  # noqa: B009 - of a note


def write(path: Path, *ports: int, age_s: float, **labels: str) -> Path:
    known = {"run": path.stem, "rank": "0", "local_rank": "0", "host": "here"} | labels
    groups = [{"targets": [f"127.0.0.1:{port}"], "labels": known} for port in ports]
    path.write_text(json.dumps(groups))
    then = path.stat().st_mtime - age_s
    os.utime(path, (then, then))
    return path


def test_only_what_nobody_serves_any_more_is_removed(tmp_path: Path) -> None:
    with socket.socket() as living:
        living.bind(("127.0.0.1", 0))
        living.listen()
        port, closed = living.getsockname()[1], free_port()
        dead = write(tmp_path / "dead.json", closed, closed + 1, age_s=2 * KEEP_S)
        kept = [
            write(tmp_path / "living.json", closed, port, age_s=2 * KEEP_S),
            write(tmp_path / "young.json", closed, age_s=KEEP_S / 2),
            tmp_path / "other.json",
            tmp_path / "text.json",
        ]
        kept[2].write_text('[{"targets": ["127.0.0.1:1"], "labels": {"job": "node"}}]')
        kept[3].write_text("[")
        for path in kept[2:]:
            os.utime(path, (0, 0))
        told = Told()
        discovery._sweep(tmp_path, cast("Sinks", told))
        discovery._sweep(tmp_path, cast("Sinks", told))
    assert not dead.exists()
    assert all(path.exists() for path in kept)
    assert told.texts == ["metrics.file_sd_dir: removed what dead runs left: dead.json"]
