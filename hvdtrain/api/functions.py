"""The functions of the Python API: `hvdtrain.plan`, `hvdtrain.train`, `hvdtrain.build_model`.

Nothing is imported before it is needed: `plan` needs neither torch nor Horovod.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from hvdtrain.config.schema import Config
from hvdtrain.errors import ConfigError
from hvdtrain.plan.epochs import Plan

if TYPE_CHECKING:
    from torch import nn

    from hvdtrain.comm.ranks import Comm


def plan(cfg: Config, world_size: int = 1, images: int | None = None) -> Plan:
    """What a run of `cfg` on `world_size` ranks does: epochs with their steps, batches and rates.

    `images`: number of training images; None: as the config says, else counted in `data.train`.
    Raises ConfigError if the recipe cannot be planned, DataError if the images cannot be listed.
    """
    from hvdtrain.config.networks import check_name
    from hvdtrain.plan.epochs import make_plan
    from hvdtrain.plan.images import num_images

    if world_size < 1:
        raise ConfigError(f"plan: world_size: expected at least 1, found {world_size}")
    check_name(cfg.model.name)
    return make_plan(cfg, world_size, num_images(cfg) if images is None else images)


def train(
    cfg: Config,
    *,
    resume: str = "never",
    run_dir: str | Path | None = None,
    accept_changes: bool = False,
    comm: Comm | None = None,
) -> dict[str, Any]:
    """Train `cfg`; returns the contents of `summary.json`, with the run's directory as `run_dir`.

    Under a launcher every rank calls it, else this process trains by itself. The options are those of
    `hvdtrain train`. `comm`: the ranks, where they have been joined already.
    Raises HvdtrainError: one line, of the kinds in `hvdtrain.errors`; Preempted after a stop by a
    signal, with a checkpoint. A run that makes no progress for `train.stall_timeout` ends the process.
    """
    from hvdtrain.train import train as run_training

    return run_training(
        cfg,
        comm if comm is not None else joined(cfg),
        resume=resume,
        run_dir=Path(run_dir) if run_dir is not None else None,
        accept_changes=accept_changes,
    )


def build_model(cfg: Config, num_classes: int | None = None) -> nn.Module:
    """The network of `cfg` with the weights that its seed gives: [N,3,H,W] float32 → logits [N,classes].

    `num_classes`: None: as the config says. `model.weights` is not read. Sets torch's global seed.
    Raises ConfigError if the number of classes is unknown or the network cannot be built.
    """
    import torch

    from hvdtrain.models import build_model as build

    classes = cfg.planned_classes if num_classes is None else num_classes
    if classes is None:
        raise ConfigError("build_model: num_classes: not given, and not in the config")
    torch.manual_seed(cfg.seed)
    return build(cfg.model, classes)


_joined: list[Comm] = []


def joined(cfg: Config) -> Comm:
    """The ranks that the launcher started; a process joins them once, and leaves them at its end.

    Raises CommError if they cannot be joined.
    """
    if not _joined:
        from hvdtrain.comm.start import init_comm

        comm = cfg.comm
        stall_s = cfg.train.stall_timeout
        _joined.append(init_comm(comm.interface, stall_s, comm.engine, link_gbit=comm.link_gbit))
    return _joined[0]
