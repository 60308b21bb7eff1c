"""Check one machine before a run does: versions, build features, MPI, decoding, ports, memory."""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from hvdtrain.comm.horovod import horovod_features, mpi_library
from hvdtrain.config.schema import Config, Phase
from hvdtrain.errors import HvdtrainError
from hvdtrain.versions import installed_versions

MIN_SHARED_MEMORY_BYTES = 64 * 2**20
"""Open MPI and DALI share buffers through /dev/shm; containers often give it 64 MB or less."""


def examine() -> dict[str, Any]:
    """All findings: `versions`, `horovod`, `machine`, and `checks` as {name, ok, detail}."""
    horovod: dict[str, Any] = {}

    def features() -> str:
        horovod.update(horovod_features())
        built = [name for name in ("mpi", "gloo", "nccl", "cuda") if horovod[name]]
        if torch.cuda.is_available() and not horovod["nccl"]:
            raise HvdtrainError("built without NCCL although torch has CUDA: run make setup again")
        return f"{horovod['version']} with {', '.join(built)}"

    checks = [
        _check("horovod", features),
        _check("mpi", mpi_library),
        _check("launcher", _launcher),
        _check("decoding", _decode),
        _check("metrics port", _port),
        _check("shared memory", _shared_memory),
        _check("host name", _host_name),
    ]
    return {
        "ok": all(check["ok"] for check in checks),
        "versions": installed_versions(),
        "horovod": horovod,
        "machine": {
            "host": socket.gethostname(),
            "cores": len(os.sched_getaffinity(0)),
            "gpus": [
                torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())
            ],
        },
        "checks": checks,
    }


def machine_text(findings: dict[str, Any]) -> str:
    """The findings for a person: one line each, faults with what to do."""
    machine = findings["machine"]
    lines = [f"{name:<20}  {version}" for name, version in findings["versions"].items()]
    lines.append(f"{'cores':<20}  {machine['cores']}")
    lines.append(
        f"{'GPUs':<20}  {', '.join(machine['gpus']) or 'none: images are decoded and models trained on the CPU'}"
    )
    for check in findings["checks"]:
        mark = "ok   " if check["ok"] else "FAULT"
        lines.append(f"{mark} {check['name']:<14}  {check['detail']}")
    return "\n".join(lines)


def _check(name: str, run: Callable[[], str]) -> dict[str, Any]:
    try:
        return {"name": name, "ok": True, "detail": run()}
    except (HvdtrainError, OSError, ImportError, RuntimeError) as error:
        return {"name": name, "ok": False, "detail": " ".join(str(error).split())}


def _launcher() -> str:
    found = [name for name in ("horovodrun", "mpirun", "srun") if shutil.which(name)]
    if not found:
        raise HvdtrainError(
            "none of horovodrun, mpirun, srun is on PATH: activate the environment, e.g. "
            ". .venv/bin/activate, or install Horovod"
        )
    return ", ".join(found)


def _decode() -> str:
    """Write one JPEG and read it back through the training pipeline."""
    from PIL import Image

    from hvdtrain.plan.epochs import make_plan
    from pipelines.loader import Loaders

    with tempfile.TemporaryDirectory() as root:
        folder = Path(root) / "class"
        folder.mkdir()
        Image.new("RGB", (64, 48), (200, 100, 50)).save(folder / "image.jpg")
        cfg = Config(phases=[Phase(epochs=1, image_size=32, batch_per_worker=1)])
        data = cfg.data.model_copy(update={"train": root, "decode_threads": 1})
        device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
        with Loaders(data, seed=0, rank=0, world_size=1, device=device) as loaders:
            [(_, batch)] = list(loaders.train(make_plan(cfg, 1, 1).epochs[0]))
    red, green, blue = batch.images.mean(dim=(0, 2, 3)).tolist()
    if not red > green > blue:
        raise HvdtrainError(f"an orange image was decoded to ({red:.2f}, {green:.2f}, {blue:.2f})")
    return f"DALI decodes on the {'GPU' if device.type == 'cuda' else 'CPU'}"


def _port() -> str:
    port = Config.model_fields["metrics"].default.port
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return f"{port} is in use: a run takes the next free one"
    return f"{port} is free"


def _shared_memory() -> str:
    free = shutil.disk_usage("/dev/shm").free
    if free < MIN_SHARED_MEMORY_BYTES:
        raise HvdtrainError(
            f"/dev/shm has {free >> 20} MiB free, {MIN_SHARED_MEMORY_BYTES >> 20} are needed: "
            "start the container with --shm-size=1g"
        )
    return f"{free >> 20} MiB free"


def _host_name() -> str:
    name = socket.gethostname()
    return f"{name} is {socket.gethostbyname(name)}"
