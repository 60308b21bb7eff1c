"""Building what a run trains with: device, data, model and optimizer."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from hvdtrain import activity
from hvdtrain.comm.agreement import require_equal, together
from hvdtrain.comm.gpus import own_gpu
from hvdtrain.comm.ranks import Comm
from hvdtrain.comm.start import cores_for_rank
from hvdtrain.config.networks import as_made
from hvdtrain.config.schema import Config
from hvdtrain.engine.allocator import keep_freed_memory
from hvdtrain.engine.compiling import compile_network, require_compiler
from hvdtrain.engine.compression.settings import noise_scale_every, require_no_loss_scale
from hvdtrain.engine.erasing import Erasing
from hvdtrain.engine.global_norm import share_batch_norm
from hvdtrain.engine.loss import Loss
from hvdtrain.engine.mixing import Mixing
from hvdtrain.engine.noise_meter import NoiseMeter
from hvdtrain.engine.reducer import Reducer
from hvdtrain.engine.sizes import check_sizes
from hvdtrain.engine.step import State, StepSettings, resolve_precision
from hvdtrain.engine.teacher import Teacher, load_teacher
from hvdtrain.engine.weight_meter import WeightMeter
from hvdtrain.errors import ConfigError, DataError
from hvdtrain.models import build_model
from hvdtrain.models.depths import depths_of
from hvdtrain.models.freezing import freeze_for, train_in_any_phase
from hvdtrain.models.small import Airbench
from hvdtrain.optim import build_optimizer, set_trained
from hvdtrain.optim.agc import AdaptiveClipping
from hvdtrain.optim.ema import Ema
from hvdtrain.optim.lookahead import Lookahead
from hvdtrain.plan.epochs import Epoch, Plan, make_plan
from hvdtrain.plan.images import check_counts
from pipelines.loader import Loaders


@dataclass
class Parts:
    """Plan, data and training state of this rank; leaving the context closes the loaders."""

    plan: Plan
    loaders: Loaders
    state: State

    def __enter__(self) -> Parts:
        return self

    def __exit__(self, *_: object) -> None:
        self.loaders.close()


def set_up(cfg: Config, comm: Comm, classes: Sequence[str] | None = None) -> Parts:
    """Open the datasets and build the initial state, which depends on the seed only.

    `classes`: those of the checkpoint that will be loaded, see `pipelines.datasets`.
    An error on any rank is raised on all of them.
    """
    with together(comm):
        if cfg.data.train is None:
            raise ConfigError("data.train: not set: name the training images with data.train=DIR")
    _try_compiler(cfg, comm)
    loaders, device = open_shared(cfg, comm, classes)
    with together(comm):
        require_no_loss_scale(cfg, resolve_precision(cfg, device))
        plan = make_plan(cfg, comm.size, loaders.num_train)
        state = init_state(cfg, comm, device, num_classes=len(loaders.classes))
    state.teacher = load_teacher(cfg, comm, device, len(loaders.classes), loaders.classes)
    compile_if_asked(state, cfg)
    return Parts(plan, loaders, state)


def set_up_evaluation(cfg: Config, comm: Comm, classes: Sequence[str]) -> Parts:
    """The same for evaluation: `data.train` is not opened, unless its images are held out, and the
    plan, of a made-up number of images, only serves to say how an epoch evaluates."""
    with together(comm):
        if cfg.data.val is None:
            raise DataError("data.val: no validation images: name them with data.val=DIR")
    loaders, device = open_shared(cfg, comm, classes, training=False)
    with together(comm):
        largest = max(phase.batch_per_worker for phase in cfg.phases)
        plan = make_plan(cfg, comm.size, largest * cfg.train.accumulate * comm.size)
        state = init_state(cfg, comm, device, num_classes=len(loaders.classes))
    return Parts(plan, loaders, state)


def open_shared(
    cfg: Config, comm: Comm, classes: Sequence[str] | None, *, training: bool = True
) -> tuple[Loaders, torch.device]:
    """The loaders, ready for the first batch, and the device of this rank."""
    device = choose_device(comm)
    cores = cores_for_rank(comm)
    torch.set_num_threads(cfg.train.compute_threads or cores)
    activity.enter("listing the images")
    with together(comm):
        loaders = open_loaders(cfg, comm, device, cores, classes, training=training)
    for kind, found in loaders.fingerprints.items():
        require_equal(comm, f"data.{kind}: the list of images", found, DataError)
    share_data(comm, loaders)
    activity.enter("building the network")
    return loaders, device


def choose_device(comm: Comm) -> torch.device:
    """The GPU of this rank, or the CPU where there is no GPU; set up for training.

    Raises ConfigError if the host has fewer GPUs than ranks.
    """
    if not torch.cuda.is_available():
        keep_freed_memory()
        return torch.device("cpu")
    visible = torch.cuda.device_count()
    index = own_gpu(comm.local_rank, visible)
    if index is None:
        raise ConfigError(
            f"{comm.local_size} ranks on {socket.gethostname()}, which has {visible} GPUs: start one rank per GPU"
        )
    torch.cuda.set_device(index)
    torch.backends.cudnn.benchmark = True
    return torch.device("cuda", index)


def open_loaders(
    cfg: Config,
    comm: Comm,
    device: torch.device,
    cores: int,
    classes: Sequence[str] | None = None,
    *,
    training: bool = True,
) -> Loaders:
    """The loaders of this rank, without `training` only for evaluation; `classes`: see `set_up`.

    Raises DataError if the number of images or classes differs from the config's.
    """
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
        pairs=cfg.train.mix_partner == "doubled",
        classes=classes,
        training=training,
    )
    try:
        images = loaders.num_train if training else None
        check_counts(cfg, images, len(loaders.classes))
    except DataError:
        loaders.close()
        raise
    return loaders


def share_data(comm: Comm, loaders: Loaders) -> None:
    """Exchange what the loaders of all ranks need from each other before the first batch."""
    with together(comm):
        offer = loaders.offer()
    offers = comm.gather_text(offer)
    with together(comm):
        loaders.accept(offers)


def init_state(cfg: Config, comm: Comm, device: torch.device, num_classes: int) -> State:
    """Model, optimizer and reducer, initialised from the seed: equal on all ranks. Without a teacher."""
    torch.manual_seed(cfg.seed)
    model = build_model(cfg.model, num_classes).to(device)
    train_in_any_phase(model, cfg)  # reducer and optimizer hold every parameter that a phase trains
    check_sizes(model, cfg)
    if cfg.train.channels_last:
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    shared = cfg.model.batch_norm == "global"
    norms = share_batch_norm(model, comm, cfg.model.name) if shared else None
    autocast = resolve_precision(cfg, device)
    compression = cfg.comm.compression
    reducer = Reducer(
        model.parameters(),
        comm,
        accumulate=cfg.train.accumulate,
        # A run has resolved auto and None; commands that do not train have not.
        compression="none" if compression == "auto" else compression,
        rank=cfg.comm.powersgd_rank,
        seed=cfg.seed,
        group_bytes=cfg.comm.group_bytes,
    )
    train, agc, lookahead = cfg.train, cfg.optimizer.agc, cfg.optimizer.lookahead
    static = None if train.loss_scale == "dynamic" else float(train.loss_scale)
    optimizer = build_optimizer(
        model,
        cfg.optimizer,
        depths=depths_of(model, cfg.model.name) if cfg.optimizer.layer_decay < 1 else None,
        autocast=autocast,
        ranks=comm,
    )
    return State(
        model=model,
        optimizer=optimizer,
        reducer=reducer,
        scaler=torch.amp.GradScaler(
            device.type, init_scale=static or 2.0**16, enabled=autocast == torch.float16
        ),
        comm=comm,
        settings=StepSettings(
            device=device,
            autocast=autocast,
            loss=Loss.of(train),
            clip_norm=cfg.optimizer.clip_norm,
            agc=AdaptiveClipping(model, agc, classifier_bias=cfg.optimizer.agc_classifier_bias)
            if agc is not None
            else None,
            static_loss_scale=static,
            erasing=Erasing(cfg.data.random_erasing, cfg.seed),
            val_views=train.val_views,
            mixing=Mixing.of(cfg),
            seed=cfg.seed,
        ),
        ema=Ema(model, train.ema_decay) if train.ema_decay is not None else None,
        norms=norms,
        lookahead=Lookahead(optimizer, lookahead) if lookahead.every is not None else None,
        noise=NoiseMeter(
            noise_scale_every(cfg), parts=comm.size if comm.size > 1 else train.accumulate
        ),
        weights=WeightMeter(model) if cfg.metrics.weights and comm.rank == 0 else None,
    )


def _try_compiler(cfg: Config, comm: Comm) -> None:
    """Raise ConfigError on all ranks if one cannot compile, before the images are listed."""
    if cfg.train.compile != "none":
        activity.enter("trying the compiler")
        with together(comm):
            require_compiler(choose_device(comm))


def compile_if_asked(state: State, cfg: Config) -> None:
    """Do what `train.compile` says; every rank must call. Raises ConfigError on all where one cannot."""
    if cfg.train.compile == "none":
        return
    with together(state.comm):
        compile_network(state.model, cfg.train.compile, state.settings.device)
    state.compiled = set()


def free_parts(state: State, cfg: Config, epoch: Epoch) -> None:
    """Freeze what is not trained in this epoch, by `model.freeze` and the phases up to its own.

    Call it at the start of every epoch, on every rank.
    """
    if not any(phase.freeze or phase.unfreeze for phase in cfg.phases):
        return
    freeze_for(state.model, cfg, epoch.phase_index)
    set_trained(state.model, state.optimizer)


def whiten(state: State, cfg: Config, images: torch.Tensor) -> None:
    """Before the first step, compute the whitening layer, if the model has one.

    `images` [N,3,H,W] are this rank's first batch; the layer is computed from those of all ranks
    and is equal on all. Does nothing in a resumed run or one that starts from `model.weights`.
    Every rank must call it.
    """
    model, comm = state.model, state.comm
    if isinstance(model, Airbench) and state.progress.step == 0 and cfg.model.weights is None:
        model.whiten(images, lambda sums: comm.sum_(sums, "whitening"))
        comm.broadcast_({"whitening": model.whitening.weight.data})


def checkpoint_labels(cfg: Config, loaders: Loaders, teacher: Teacher | None) -> dict[str, Any]:
    """What must be equal in a checkpoint and in the run that loads it."""
    data = cfg.data
    order = data.shuffle if data.shuffle == "full" else f"shards, {data.shuffle_window}"
    taught = {} if teacher is None else {"teacher (sha256 of its weights)": teacher.sha256}
    if data.repeats > 1:
        order = f"{order}, each {data.repeats} times"
    return {
        **model_labels(cfg, loaders),
        "train_images": loaders.num_train,
        "seed": cfg.seed,
        "optimizer": cfg.optimizer.name,
        "order": order,
        **taught,
    }


def model_labels(cfg: Config, loaders: Loaders) -> dict[str, Any]:
    """What must be equal where a checkpoint is only evaluated."""
    return {"model": as_made(cfg.model.name), "classes": len(loaders.classes)}
