"""A file with the addresses of the ranks' endpoints, for a Prometheus server.

Source: https://prometheus.io/docs/prometheus/latest/configuration/configuration/#file_sd_config
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
import os
import socket
import time
from pathlib import Path
from typing import Any, Protocol

from hvdtrain.comm.agreement import together
from hvdtrain.comm.ranks import Comm
from hvdtrain.config.schema import Metrics
from hvdtrain.errors import ResourceError
from hvdtrain.files import write_atomically
from hvdtrain.paths import RunPaths
from hvdtrain.telemetry.prometheus import Exporter
from hvdtrain.telemetry.reports import Note, Report

KEEP_S = 86400.0
"""So long after a crash the addresses of a run stay, for Prometheus to show its ranks as down."""
MOST_LOOKED_AT = 200
"""Files of `metrics.file_sd_dir`."""
ANSWER_S = 0.5
LABELS = {"run", "rank", "local_rank", "host"}


class Outputs(Protocol):
    """Where the endpoint is, and who is told of it."""

    exporter: Exporter | None

    def write(self, report: Report) -> None:
        """Report to every sink."""

    def say(self, text: str) -> None:
        """Show a line to the user."""


def publish(cfg: Metrics, comm: Comm, paths: RunPaths, sinks: Outputs) -> None:
    """Write the addresses of all ranks, on rank 0, when all are open; every rank must call.

    Raises ResourceError on all ranks if rank 0 cannot write.
    """
    if sinks.exporter is None:
        return
    endpoint = sinks.exporter.endpoint
    host = socket.gethostname()
    address = f"{_address(cfg.bind, host)}:{endpoint.port}"
    mine = {
        "targets": [address],
        "labels": {
            "run": paths.name,
            "rank": str(comm.rank),
            "local_rank": str(comm.local_rank),
            "host": host,
            **({"__scheme__": "https"} if cfg.tls_cert is not None else {}),
        },
    }
    moved = endpoint.port != cfg.port + comm.local_rank
    texts = comm.gather_text(json.dumps([mine, endpoint.warnings, moved]))
    gathered = [json.loads(text) for text in texts]
    for text in sorted({text for _, warnings, _ in gathered for text in warnings}):
        sinks.write(Note(f"warning: {text}"))
    if moves := sum(moved for _, _, moved in gathered):
        text = (
            f"metrics.port: in use: {moves} of {comm.size} ranks took the next free one; all "
            f"addresses are in {paths.file_sd}"
        )
        sinks.write(Note(text))
    groups = [group for group, _, _ in gathered]
    if cfg.on_loopback:  # another host's 127.0.0.1 is not this host
        near = [group for group in groups if group["labels"]["host"] == groups[0]["labels"]["host"]]
        if far := len(groups) - len(near):
            text = (
                f"metrics.bind: {cfg.bind} is reachable only from the same machine: {far} ranks on "
                f"other machines are not in {paths.file_sd}; open the endpoints with "
                "metrics.bind=0.0.0.0 and metrics.token_file"
            )
            sinks.write(Note(text))
        groups = near
    with together(comm):
        if comm.rank == 0:
            _write(cfg, paths, groups)
            if cfg.file_sd_dir is not None:
                _sweep(Path(cfg.file_sd_dir), sinks)
    scheme = "http" if cfg.tls_cert is None else "https"
    sinks.say(f"live page: {scheme}://{address}/")


def withdraw(cfg: Metrics, comm: Comm, paths: RunPaths) -> None:
    """Remove the files with the addresses, on rank 0, at the regular end of an attempt.

    After a crash the files stay, so that Prometheus shows the ranks as down.
    """
    if comm.rank == 0 and cfg.enabled:
        for path in _files(cfg, paths):
            path.unlink(missing_ok=True)


def _sweep(folder: Path, sinks: Outputs) -> None:
    """Remove the files of runs that ended without removing them over a day ago: nobody listens at any of
    their addresses. What is not such a file stays."""
    removed = []
    for path in sorted(folder.glob("*.json"))[:MOST_LOOKED_AT]:
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            if time.time() - path.stat().st_mtime < KEEP_S or path.stat().st_uid != os.getuid():
                continue
            groups = json.loads(path.read_text())
            if not groups or any(LABELS - set(group["labels"]) for group in groups):
                continue
            if not any(_listens(target) for group in groups for target in group["targets"]):
                path.unlink()
                removed.append(path.name)
    if removed:
        sinks.write(Note(f"metrics.file_sd_dir: removed what dead runs left: {', '.join(removed)}"))


def _listens(target: str) -> bool:
    """Whether somebody may listen at an address: only a refused connection says that nobody does."""
    host, _, port = target.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER_S).close()
    except ConnectionRefusedError:
        return False
    except OSError:
        return True
    return True


def _write(cfg: Metrics, paths: RunPaths, groups: list[dict[str, Any]]) -> None:
    if cfg.file_sd_dir is not None and not Path(cfg.file_sd_dir).is_dir():
        raise ResourceError(f"metrics.file_sd_dir: {cfg.file_sd_dir}: no such folder")
    for path in _files(cfg, paths):
        write_atomically(path, (json.dumps(groups, indent=1) + "\n").encode())
        path.chmod(0o644)  # the server is another user


def _files(cfg: Metrics, paths: RunPaths) -> list[Path]:
    """In `file_sd_dir` the file has the run's name, so that the server can read `*.json` there."""
    others = [] if cfg.file_sd_dir is None else [Path(cfg.file_sd_dir) / f"{paths.name}.json"]
    return [paths.file_sd, *others]


def _address(bind: str, host: str) -> str:
    """The host part of the address for others: the bound address, or the host's name."""
    try:
        address = ipaddress.ip_address(bind)
    except ValueError:
        return bind
    if address.is_unspecified:
        return host
    return f"[{bind}]" if address.version == 6 else bind
