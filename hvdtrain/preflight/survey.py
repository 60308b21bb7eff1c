"""Before the first step: what all ranks find of themselves, laid side by side.

A few seconds at the start of every run, and of `hvdtrain doctor` under a launcher.
"""

from __future__ import annotations

import contextlib
import os
import socket
from pathlib import Path

import torch

from hvdtrain.comm.ranks import Comm
from hvdtrain.config.load import config_hash
from hvdtrain.config.schema import Config
from hvdtrain.errors import HvdtrainError
from hvdtrain.launch.nic import choose_for_rank
from hvdtrain.launch.variables import launcher_sizes
from hvdtrain.models import build_model
from hvdtrain.preflight.facts import (
    Facts,
    congestion_control,
    machine_id,
    versions,
)
from hvdtrain.preflight.links import ring_link
from hvdtrain.preflight.storage import Dataset, datasets, disk_at, glance, look, read_speed

MOMENTS = {"sgd": 1, "lars": 1, "lamb": 2, "adamw": 2}
"""Tensors that each optimizer keeps per weight."""
USUAL_CLASSES = 1000


def survey(
    cfg: Config | None, comm: Comm, output: Path, *, whole: bool = False, own: tuple[str, ...] = ()
) -> list[Facts]:
    """The facts of all ranks, on every rank. `whole` lists all images; a run does it on its own
    when it opens its data. `own` are faults of this rank that the caller knows of.

    No fault is raised here: `judge` finds it. Every rank must call.
    """
    interface = cfg.comm.interface if cfg else "auto"
    nic = choose_for_rank(interface, os.environ) if comm.size > 1 else None
    link, clock = ring_link(comm, nic)
    first_here = comm.local_rank == 0
    data: tuple[Dataset, ...] = ()
    reads = None
    if cfg is not None and first_here:
        see = look if whole else glance
        data = tuple(see(key, path) for key, path in datasets(cfg))
        reads = read_speed(cfg.data.train) if cfg.data.train is not None else None
    gpus = torch.cuda.device_count()
    mine = comm.local_rank if comm.local_rank < gpus else None
    gpu = torch.cuda.get_device_properties(mine) if mine is not None else None
    facts = Facts(
        host=socket.gethostname(),
        machine=machine_id(),
        rank=comm.rank,
        size=comm.size,
        local_rank=comm.local_rank,
        launcher=launcher_sizes(os.environ),
        versions=versions(),
        config=config_hash(cfg) if cfg else None,
        clock=clock,
        disk=(
            disk_at(output, checkpoint_bytes(cfg), cfg.checkpoint.keep)
            if cfg is not None and comm.rank == 0
            else None
        ),
        data=data,
        nic=nic,
        link_gbit=cfg.comm.link_gbit if cfg else None,
        link=link,
        congestion=congestion_control(),
        visible_gpus=gpus,
        gpu=str(gpu.uuid) if gpu is not None else None,
        gpu_name=gpu.name if gpu is not None else "",
        reads=reads,
        faults=own,
    )
    return [Facts.from_json(text) for text in comm.gather_text(facts.to_json())]


def checkpoint_bytes(cfg: Config) -> int | None:
    """Size of one checkpoint: weights, what the optimizer keeps of each, their average.

    The model is made without memory. None where it cannot be, for a model of another library.
    """
    with contextlib.suppress(HvdtrainError, RuntimeError, NotImplementedError):
        with torch.device("meta"):
            model = build_model(cfg.model, cfg.model.num_classes or USUAL_CLASSES)
        weights = sum(p.numel() * p.element_size() for p in model.parameters())
        buffers = sum(b.numel() * b.element_size() for b in model.buffers())
        averages = 1 if cfg.train.ema_decay is not None else 0
        return weights * (1 + MOMENTS[cfg.optimizer.name] + averages) + buffers * (1 + averages)
    return None
