"""Check one machine: versions, build features, MPI, image decoding, ports, shared memory."""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from hvdtrain.comm.engines import horovod_installed
from hvdtrain.comm.horovod import horovod_features, mpi_library
from hvdtrain.comm.torch_distributed import torch_engine
from hvdtrain.config.schema import Config, Phase
from hvdtrain.errors import HvdtrainError
from hvdtrain.versions import GET_HOROVOD, installed_versions

WITHOUT_HOROVOD = (
    "not installed: ranks are joined by torch.distributed (torchrun, srun); for mpirun and hvdtrain launch, "
    f"{GET_HOROVOD}"
)
MIN_SHARED_MEMORY_BYTES = 64 * 2**20
"""Open MPI and DALI share buffers in /dev/shm; many containers give it 64 MB or less."""


@dataclass(frozen=True)
class Check:
    """One check of this machine; `detail` says what was found, and after a fault what to do."""

    name: str
    ok: bool
    detail: str


@dataclass(frozen=True)
class Machine:
    """What this machine has, and the result of its checks."""

    versions: dict[str, str]
    horovod: dict[str, Any]
    """Version and build features; empty without Horovod."""
    host: str
    cores: int
    """Cores that this process may use."""
    gpus: list[str]
    checks: list[Check]

    @property
    def faults(self) -> list[str]:
        """One line for each failed check."""
        return [f"{check.name}: {check.detail}" for check in self.checks if not check.ok]

    def as_dict(self) -> dict[str, Any]:
        """For `doctor --json`."""
        return {
            "ok": not self.faults,
            "versions": self.versions,
            "horovod": self.horovod,
            "machine": {"host": self.host, "cores": self.cores, "gpus": self.gpus},
            "checks": [asdict(check) for check in self.checks],
        }


def examine() -> Machine:
    """Run all checks of this machine."""
    horovod: dict[str, Any] = {}

    def features() -> str:
        horovod.update(horovod_features())
        built = [name for name in ("mpi", "gloo", "nccl", "cuda") if horovod[name]]
        if torch.cuda.is_available() and not horovod["nccl"]:
            raise HvdtrainError("built without NCCL although torch has CUDA: run make setup again")
        return f"{horovod['version']} with {', '.join(built)}"

    own = [_check("horovod", features), _check("mpi", mpi_library)]
    if not horovod_installed():
        own = [Check("horovod", True, WITHOUT_HOROVOD)]
    checks = [
        *own,
        _check("torch engine", torch_engine),
        _check("launcher", _launcher),
        _check("decoding", _decode),
        _check("metrics port", _port),
        _check("shared memory", _shared_memory),
        _check("host name", _host_name),
    ]
    return Machine(
        versions=installed_versions(),
        horovod=horovod,
        host=socket.gethostname(),
        cores=len(os.sched_getaffinity(0)),
        gpus=[torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
        checks=checks,
    )


def machine_text(machine: Machine) -> str:
    """One line for each version, resource and check; a fault says what to do."""
    gpus = ", ".join(machine.gpus) or "none: images are decoded and models trained on the CPU"
    facts = [*machine.versions.items(), ("cores", str(machine.cores)), ("GPUs", gpus)]
    lines = [f"{name:<20}  {value}" for name, value in facts]
    for check in machine.checks:
        mark = "ok   " if check.ok else "FAULT"
        lines.append(f"{mark} {check.name:<14}  {check.detail}")
    return "\n".join(lines)


def _check(name: str, run: Callable[[], str]) -> Check:
    try:
        return Check(name, True, run())
    except (HvdtrainError, OSError, ImportError, RuntimeError) as error:
        return Check(name, False, " ".join(str(error).split()))


def _launcher() -> str:
    launchers = [
        name for name in ("horovodrun", "mpirun", "srun", "torchrun") if shutil.which(name)
    ]
    if not launchers:
        raise HvdtrainError(
            "none of horovodrun, mpirun, srun, torchrun is on PATH: activate the environment, e.g. "
            ". .venv/bin/activate"
        )
    return ", ".join(launchers)


def _decode() -> str:
    """Write one JPEG and read it through the training pipeline."""
    from PIL import Image

    from hvdtrain.plan.epochs import make_plan
    from pipelines.loader import Loaders

    with tempfile.TemporaryDirectory() as root:
        folder = Path(root) / "class"
        folder.mkdir()
        Image.new("RGB", (64, 48), (200, 100, 50)).save(folder / "image.jpg")
        cfg = Config(phases=[Phase(epochs=1, image_size=64, batch_per_worker=1)])
        data = cfg.data.model_copy(update={"train": root, "decode_threads": 1})
        device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
        with Loaders(data, seed=0, rank=0, world_size=1, device=device) as loaders:
            [(_, batch)] = list(loaders.train(make_plan(cfg, 1, 1).epochs[0]))
    red, green, blue = batch.images.mean(dim=(0, 2, 3)).tolist()
    if not red > green > blue:
        raise HvdtrainError(
            f"an orange image was decoded as RGB ({red:.2f}, {green:.2f}, {blue:.2f})"
        )
    return f"DALI decodes on the {'GPU' if device.type == 'cuda' else 'CPU'}"


def _port() -> str:
    port = Config.model_fields["metrics"].default.port
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return f"{port} is in use: a run uses the next free port"
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
