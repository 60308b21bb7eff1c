"""What a run needs before its first step: devices, directory, state."""

from __future__ import annotations

import json
import platform
import socket
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from hvdtrain.checkpoint import list_checkpoints, load_checkpoint, verify
from hvdtrain.comm import Comm, cores_for_rank, require_equal, together
from hvdtrain.config import Config
from hvdtrain.errors import CheckpointError, ConfigError, DataError
from hvdtrain.mixing import Mixing
from hvdtrain.models import build_model
from hvdtrain.models.small import Airbench
from hvdtrain.models.weights import load_weights
from hvdtrain.noise_meter import NoiseMeter
from hvdtrain.noise_scale import NoiseScale
from hvdtrain.optim import build_optimizer, optimizer_tensors
from hvdtrain.optim.agc import AdaptiveClipping
from hvdtrain.optim.ema import Ema
from hvdtrain.paths import RunPaths, write_atomically
from hvdtrain.plan import Plan, Position, make_plan
from hvdtrain.recipe_check import recipe_warnings
from hvdtrain.reducer import Reducer
from hvdtrain.run_directory import run_directory
from hvdtrain.step import State, resolve_precision
from hvdtrain.telemetry.bad_samples import BadSamples
from hvdtrain.telemetry.sinks import Sinks
from hvdtrain.versions import installed_versions
from pipelines.loader import Loaders


@dataclass
class Run:
    """Everything of one run on one rank."""

    cfg: Config
    comm: Comm
    paths: RunPaths
    plan: Plan
    loaders: Loaders
    sinks: Sinks
    state: State
    bad: BadSamples

    def close(self) -> None:
        """Stop loaders and sinks."""
        self.loaders.close()
        self.sinks.close()


@dataclass
class Parts:
    """What trains, before it belongs to a run: made by `set_up`, to be used as a context."""

    plan: Plan
    loaders: Loaders
    state: State

    def __enter__(self) -> Parts:
        return self

    def __exit__(self, *_: object) -> None:
        self.loaders.close()


def set_up(cfg: Config, comm: Comm) -> Parts:
    """Open the training data and build the state as the seed makes it.

    A fault on any rank is raised on all of them.
    """
    device = choose_device(comm)
    cores = cores_for_rank(comm)
    torch.set_num_threads(cores)
    with together(comm):
        if cfg.data.train is None:
            raise ConfigError("data.train: not set: name the training images with data.train=DIR")
        loaders = open_loaders(cfg, comm, device, cores)
    require_equal(comm, "data.train: the list of images", loaders.fingerprint, DataError)
    share_data(comm, loaders)
    with together(comm):
        plan = make_plan(cfg, comm.size, loaders.num_train)
        state = init_state(cfg, comm, device, num_classes=len(loaders.classes))
    return Parts(plan, loaders, state)


def prepare(cfg: Config, comm: Comm, resume: str, run_dir: Path | None) -> Run:
    """`set_up`, the run directory and the endpoints, and the state of a run that goes on.

    A fault on any rank is raised on all of them.
    """
    parts = set_up(cfg, comm)
    paths, resumed = run_directory(cfg, comm, resume, run_dir)
    with together(comm):
        if comm.rank == 0:
            paths.create()
    with together(comm):
        sinks = Sinks(cfg, comm, paths)
    bad = BadSamples(cfg.data, comm, paths.bad_samples)
    run = Run(cfg, comm, paths, parts.plan, parts.loaders, sinks, parts.state, bad)
    restore(run, must=resumed)
    if comm.rank == 0:
        _describe(run)
    return run


def choose_device(comm: Comm) -> torch.device:
    """One GPU per local rank where there are any, else the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    if comm.local_rank >= torch.cuda.device_count():
        raise ConfigError(
            f"{comm.local_size} ranks on {socket.gethostname()}, which has "
            f"{torch.cuda.device_count()} GPUs: start one rank per GPU"
        )
    torch.cuda.set_device(comm.local_rank)
    torch.backends.cudnn.benchmark = True
    return torch.device("cuda", comm.local_rank)


def open_loaders(cfg: Config, comm: Comm, device: torch.device, cores: int) -> Loaders:
    """The data of this rank; raises DataError if it is not as the config says."""
    threads = cfg.data.decode_threads or cores
    loaders = Loaders(
        cfg.data.model_copy(update={"decode_threads": threads}),
        seed=cfg.seed,
        rank=comm.rank,
        world_size=comm.size,
        local_rank=comm.local_rank,
        local_size=comm.local_size,
        device=device,
        rect_val=any(phase.rect_val for phase in cfg.phases),
    )
    expected = {"data.train_size": (cfg.data.train_size, loaders.num_train)}
    expected["model.num_classes"] = (cfg.model.num_classes, len(loaders.classes))
    for key, (wanted, found) in expected.items():
        if wanted is not None and wanted != found:
            loaders.close()
            raise DataError(f"{key}: the config says {wanted}, {cfg.data.train} has {found}")
    return loaders


def share_data(comm: Comm, loaders: Loaders) -> None:
    """Let the loaders of all ranks exchange what they need of each other before the first pass."""
    with together(comm):
        offer = loaders.offer()
    offers = comm.gather_text(offer)
    with together(comm):
        loaders.accept(offers)


def init_state(cfg: Config, comm: Comm, device: torch.device, num_classes: int) -> State:
    """Model, optimizer and reducer as the seed makes them, equal on all ranks."""
    torch.manual_seed(cfg.seed)
    model = build_model(cfg.model, num_classes).to(device)
    if cfg.train.channels_last:
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    autocast = resolve_precision(cfg, device)
    reducer = Reducer(
        model.parameters(),
        comm,
        accumulate=cfg.train.accumulate,
        compression=cfg.comm.compression,
        group_bytes=cfg.comm.group_mb * 2**20,
    )
    train, agc = cfg.train, cfg.optimizer.agc
    static = None if train.loss_scale == "dynamic" else float(train.loss_scale)
    return State(
        model=model,
        optimizer=build_optimizer(model, cfg.optimizer),
        reducer=reducer,
        scaler=torch.amp.GradScaler(
            device.type, init_scale=static or 2.0**16, enabled=autocast == torch.float16
        ),
        comm=comm,
        device=device,
        autocast=autocast,
        label_smoothing=train.label_smoothing,
        clip_norm=cfg.optimizer.clip_norm,
        agc=AdaptiveClipping(model, agc) if agc is not None else None,
        static_loss_scale=static,
        ema=Ema(model, train.ema_decay) if train.ema_decay is not None else None,
        noise=NoiseMeter(
            train.noise_scale_every, parts=comm.size if comm.size > 1 else train.accumulate
        ),
        mixing=Mixing(train.mixup, train.cutmix, cfg.seed),
        seed=cfg.seed,
    )


def restore(run: Run, *, must: bool) -> None:
    """Newest intact checkpoint of the run, if there is one; then every rank gets rank 0's state.

    A run that starts anew begins with `model.weights`, if given. Only rank 0 needs to see the
    files. Raises CheckpointError if `must` and none is usable, or if one was made by another model.
    """
    state, comm = run.state, run.comm
    with together(comm):
        if comm.rank == 0:
            loaded = _load_newest(run)
            if must and not loaded:
                raise CheckpointError(
                    f"{run.paths.checkpoints}: no usable checkpoint to resume from"
                )
            if not loaded and run.cfg.model.weights is not None:
                for text in load_weights(state.model, run.cfg.model.weights):
                    run.sinks.write("note", {"text": text})
    header = {
        "position": [state.position.epoch, state.position.sample],
        "step": state.step,
        "samples": state.samples,
        "train_seconds": state.train_seconds,
        "scaler": state.scaler.state_dict(),
        "noise_scale": state.noise.scale.state(),
        "bad": run.bad.read(),
    }
    header = json.loads(comm.gather_text(json.dumps(header))[0])
    state.position = Position(*header["position"])
    state.step, state.samples = header["step"], header["samples"]
    state.train_seconds = header["train_seconds"]
    state.noise.scale = NoiseScale(**header["noise_scale"])
    run.loaders.set_aside(run.bad.restore(header["bad"]))
    if state.scaler.is_enabled():
        state.scaler.load_state_dict(header["scaler"])
    tensors = {f"model.{name}": value for name, value in state.model.state_dict().items()}
    optimizer = optimizer_tensors(state.model, state.optimizer)
    tensors |= {f"optimizer.{name}": value for name, value in optimizer.items()}
    if state.ema is not None:
        tensors |= {f"ema.{name}": value for name, value in state.ema.tensors.items()}
    comm.broadcast_(tensors)


def whiten(run: Run, images: torch.Tensor) -> None:
    """Before the first step: set a whitening layer, if the model has one, from the first batch.

    `images` [N,3,H,W] are this rank's; the layer is made from all ranks', and equal on all. Does
    nothing in a run that goes on, or starts from `model.weights`. Every rank must call.
    """
    model, comm = run.state.model, run.comm
    if isinstance(model, Airbench) and run.state.step == 0 and run.cfg.model.weights is None:
        model.whiten(images, lambda sums: comm.sum_(sums, "whitening"))
        comm.broadcast_({"whitening": model.whitening.weight.data})


def _load_newest(run: Run) -> bool:
    for path in list_checkpoints(run.paths.checkpoints):
        try:
            meta = verify(path)
        except CheckpointError as error:
            run.sinks.write("note", {"text": f"warning: {error}"})
            continue
        load_checkpoint(run.state, path, meta, checkpoint_labels(run.cfg, run.loaders))
        at = run.state.position
        run.sinks.write(
            "note", {"text": f"resumed from {path}: epoch {at.epoch}, image {at.sample:,}"}
        )
        return True
    return False


def checkpoint_labels(cfg: Config, loaders: Loaders) -> dict[str, Any]:
    """What a checkpoint must have in common with a run that loads it."""
    return {
        "model": cfg.model.name,
        "classes": len(loaders.classes),
        "train_images": loaders.num_train,
        "seed": cfg.seed,
    }


def _describe(run: Run) -> None:
    """Write the resolved config and the environment beside the results."""
    config = yaml.safe_dump(run.cfg.model_dump(), sort_keys=False, allow_unicode=True)
    write_atomically(run.paths.config, config.encode())
    environment = {
        "versions": installed_versions(),
        "host": socket.gethostname(),
        "platform": platform.platform(),
        "device": str(run.state.device),
        "device_name": (
            torch.cuda.get_device_name()
            if run.state.device.type == "cuda"
            else platform.processor()
        ),
        "world_size": run.comm.size,
        "threads_per_rank": torch.get_num_threads(),
        "command": sys.argv,
    }
    write_atomically(run.paths.environment, json.dumps(environment, indent=1).encode())
    for text in recipe_warnings(run.cfg, run.plan):
        run.sinks.write("note", {"text": f"warning: {text}"})
    if order := run.loaders.order_warning():
        run.sinks.write("note", {"text": f"warning: {order}"})
