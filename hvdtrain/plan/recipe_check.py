"""Warns of a plan that breaks a rule of large-batch training; each rule has a reason and a source."""

from __future__ import annotations

from collections.abc import Callable

from hvdtrain.config.networks import NETWORKS
from hvdtrain.config.schema import Config
from hvdtrain.plan.epochs import Plan
from hvdtrain.plan.schedule_check import (
    rate_of_zero,
    schedule_unused,
    scheduled,
    turns_beyond_end,
    warmup_longer_than_run,
)
from hvdtrain.plan.schedules import lr_scale

PLAIN_SGD_BATCH_LIMIT = 8192
"""Largest batch at which plain SGD kept its accuracy. Source: Goyal et al. 2017, fig. 1."""
AGC_BATCH = 1024
"""Without AGC there is a warning from this batch on. Source: Brock et al. 2021, 4.1: unstable at 2048."""
LARGE_BATCH = 1024
"""From this batch on a warmup without effect gives a warning."""
FEW_UPDATES = 500
"""Runs with fewer updates give a warning if their epochs are short, too."""
SHORT_EPOCH = 20
"""Updates of a short epoch: a smaller batch would give many more."""
VERY_FEW_UPDATES = 150
"""Runs with fewer updates give a warning, also from weights. All recipes in configs/ make 490 or more."""
MUCH_SMOOTHING = 0.5
"""Label smoothing from which the other classes have about as much of the target as the true one.
Source of the usual 0.1: Szegedy et al. 2015, arXiv 1512.00567, 7."""
GOYAL_WARMUP_EPOCHS = 5.0
"""Source: Goyal et al. 2017, 2.2."""


def recipe_warnings(cfg: Config, plan: Plan) -> list[str]:
    """One line for each rule of `RULES` that the plan breaks."""
    return [text for rule in RULES if (text := rule(cfg, plan)) is not None]


def sgd_beyond_limit(cfg: Config, plan: Plan) -> str | None:
    """Plain SGD at a batch at which it is known to lose accuracy."""
    batch = _largest_batch(plan)
    if cfg.optimizer.name != "sgd" or batch <= PLAIN_SGD_BATCH_LIMIT:
        return None
    return (
        f"global batch {batch} with plain SGD: accuracy was kept up to {PLAIN_SGD_BATCH_LIMIT} "
        "only (Goyal et al. 2017, fig. 1); optimizer.name lars or lamb go further"
    )


def batch_norm_batch_changes(cfg: Config, plan: Plan) -> str | None:
    """A batch-norm batch that changes: its images are part of the loss."""
    batches = _norm_batches(cfg, plan)
    if len(batches) == 1 or not has_batch_norm(cfg):
        return None
    return (
        f"batch-norm batch changes between phases ({', '.join(map(str, batches))}): "
        "it is part of the loss being optimised (Goyal et al. 2017, 3.1)"
    )


def decay_on_norms(cfg: Config, _: Plan) -> str | None:
    """Weight decay on the scales and shifts of norms."""
    if not cfg.optimizer.decay_norms_and_biases or cfg.optimizer.weight_decay == 0:
        return None
    return (
        "weight decay on batch-norm scales and shifts: without it top-5 rose from 93.2 to "
        "93.48 % (fast.ai 2018; Goyal et al. 2017, 5.1): set optimizer.decay_norms_and_biases=false"
    )


def last_gamma_not_zero(cfg: Config, plan: Plan) -> str | None:
    """Residual blocks that do not start as the identity, at a large batch."""
    if cfg.model.zero_gamma or not has_batch_norm(cfg):
        return None
    if _largest_batch(plan) < PLAIN_SGD_BATCH_LIMIT:
        return None
    return (
        "the last batch-norm scale of residual blocks starts at 1: starting at 0 helps, most of all "
        "at large batches (Goyal et al. 2017, 5.1): set model.zero_gamma=true"
    )


def agc_off(cfg: Config, plan: Plan) -> str | None:
    """A network without batch norm at a large batch, without clipping."""
    batch = _largest_batch(plan)
    if not is_normalizer_free(cfg) or cfg.optimizer.agc is not None or batch < AGC_BATCH:
        return None
    return (
        f"{cfg.model.name} at batch {batch} without adaptive gradient clipping: nets without batch "
        "norm lose accuracy or diverge at large batches (Brock et al. 2021, arXiv 2102.06171, "
        "4.1): set optimizer.agc, 0.01 at 4096, more at smaller batches"
    )


def rate_scaled_twice(cfg: Config, plan: Plan) -> str | None:
    """A rate that seems to be given for the whole batch already."""
    k = _k(cfg, plan)
    if not scheduled(cfg) or cfg.lr.scaling != "linear" or cfg.lr.base < 1 or k < 8:
        return None
    return (
        f"learning rate {cfg.lr.base:g} at batch {cfg.lr.base_batch} is scaled ×{k:g} to "
        f"{cfg.lr.base * k:g}: if it was chosen for the whole batch, set lr.base_batch to that "
        "batch, and lr.warmup_start to the first rate of the warmup (Goyal et al. 2017, 2.1: 0.1 at 256)"
    )


def linear_scaling_of_adam(cfg: Config, plan: Plan) -> str | None:
    """The linear scaling rule, which is for SGD, with an adaptive optimizer."""
    if cfg.optimizer.name not in ("lamb", "adamw") or cfg.lr.scaling != "linear":
        return None
    if _k(cfg, plan) < 4:
        return None
    return (
        f"linear scaling ×{_k(cfg, plan):g} with {cfg.optimizer.name}: adaptive optimizers scale "
        "with the square root of the batch (You et al. 2020, arXiv 1904.00962, 4): set "
        "lr.scaling=sqrt"
    )


def no_warmup(cfg: Config, plan: Plan) -> str | None:
    """The scaled rate from the first step on."""
    k = _k(cfg, plan)
    rises = cfg.lr.cycles or (cfg.lr.schedule == "piecewise" and cfg.lr.points[0][1] < 1)
    if not scheduled(cfg) or k < 4 or cfg.lr.warmup != "none" or rises:
        return None
    return (
        f"learning rate scaled ×{k:g} without warmup: at ×32 this cost 1.1 points of "
        "top-1 against gradual warmup (Goyal et al. 2017, table 1)"
    )


def constant_warmup(cfg: Config, plan: Plan) -> str | None:
    """A rate that jumps at the end of the warmup."""
    k = _k(cfg, plan)
    if not scheduled(cfg) or k < 4 or cfg.lr.warmup != "constant":
        return None
    return (
        f"constant warmup jumps to a rate ×{k:g}: at ×32 this cost 2.1 points of top-1 against "
        "gradual warmup, more than none at all (Goyal et al. 2017, table 1): set lr.warmup=gradual"
    )


def short_warmup(cfg: Config, plan: Plan) -> str | None:
    """A gradual warmup that is shorter than the one of the published experiments."""
    k = _k(cfg, plan)
    if not scheduled(cfg) or cfg.lr.warmup != "gradual" or k < 8:
        return None
    if cfg.lr.warmup_epochs >= GOYAL_WARMUP_EPOCHS:
        return None
    return (
        f"warmup of {cfg.lr.warmup_epochs:g} epochs to a rate ×{k:g}: "
        f"{GOYAL_WARMUP_EPOCHS:g} epochs were used from ×2 to ×32 (Goyal et al. 2017, 2.2)"
    )


def warmup_without_effect(cfg: Config, plan: Plan) -> str | None:
    """A warmup that starts at the full rate, at a batch that needs a warmup."""
    batch = plan.epochs[0].global_batch_size
    if not scheduled(cfg) or cfg.lr.warmup == "none" or cfg.lr.warmup_start is not None:
        return None
    if cfg.lr.warmup == "gradual" and cfg.lr.update == "epoch":
        return None
    if _k(cfg, plan) > 1 or batch < LARGE_BATCH:
        return None
    return (
        f"the warmup has no effect: it rises from lr.base, {cfg.lr.base:g}, which is the rate at "
        f"batch {batch} already: set lr.warmup_start, for example 0"
    )


def momentum_not_corrected(cfg: Config, _: Plan) -> str | None:
    """A rate that jumps while the momentum buffer contains it."""
    jumps = [phase.lr is not None for phase in cfg.phases[1:]]
    stepped = scheduled(cfg) and cfg.lr.schedule == "step" and cfg.lr.milestones
    inside = cfg.optimizer.name == "lars" and cfg.optimizer.lars_rate == "inside"
    if not inside or not (stepped or any(jumps)):
        return None
    return (
        "the rate jumps, and LARS keeps it inside its momentum buffer: the old rate fades over "
        f"{1 / (1 - cfg.optimizer.momentum):.0f} updates (Goyal et al. 2017, remark 2): set "
        "lr.schedule to polynomial or cosine, as is usual with LARS"
    )


def few_updates(cfg: Config, plan: Plan) -> str | None:
    """Too few updates for any rate to learn much."""
    updates, steps = plan.total_steps, max(epoch.steps for epoch in plan.epochs)
    new = cfg.model.weights is None
    if updates >= (FEW_UPDATES if new and steps < SHORT_EPOCH else VERY_FEW_UPDATES):
        return None
    batch = max(epoch.batch_per_worker for epoch in plan.epochs) * updates // FEW_UPDATES
    recipe = "" if cfg.name == "finetune_small" else "; finetune_small is the recipe for few images"
    smaller = f"a batch_per_worker of {batch} or less, or " if batch >= 8 else ""
    return (
        f"{updates} updates in all, at most {steps} an epoch, are few: the rate rises and falls faster "
        f"than the network learns: use {smaller}"
        f"{-(-len(plan.epochs) * FEW_UPDATES // updates)} epochs or more{', or start from model.weights' if new else ''}{recipe}"
    )


def log_beyond_run(cfg: Config, plan: Plan) -> str | None:
    """Reports so rare that only the ends of epochs are reported."""
    if cfg.train.log_every <= plan.total_steps:
        return None
    return (
        f"train.log_every {cfg.train.log_every} is more than the {plan.total_steps} updates of the "
        "run: only the last one of each epoch is reported"
    )


def much_smoothing(cfg: Config, _: Plan) -> str | None:
    """Label smoothing that leaves little of the target to the true class."""
    smoothing, classes = cfg.train.label_smoothing, cfg.planned_classes
    if smoothing < MUCH_SMOOTHING:
        return None
    true = f"{1 - smoothing + smoothing / classes:.2g}" if classes else f"{1 - smoothing:g}"
    share = f"{true} of the target" if classes else f"little more than {true} of the target"
    return (
        f"train.label_smoothing {smoothing:g} leaves {share} to the true class and spreads the rest "
        "over the others: 0.1 is usual (Szegedy et al. 2015, arXiv 1512.00567, 7)"
    )


def compiled(cfg: Config, plan: Plan) -> str | None:
    """What a compiled network costs."""
    if (how := cfg.train.compile) == "none":
        return None
    shapes = len({(epoch.image_size, epoch.batch_per_worker) for epoch in plan.epochs})
    times = "once" if shapes == 1 else f"{shapes} times, for each image size and batch"
    overlaps = how == "stages" or plan.epochs[0].world_size == 1
    late = "" if overlaps else "; gradients are exchanged after the backward pass, not during it"
    return f"train.compile {how}: every rank compiles {times}, which takes seconds to minutes{late}"


RULES: tuple[Callable[[Config, Plan], str | None], ...] = (
    sgd_beyond_limit,
    batch_norm_batch_changes,
    decay_on_norms,
    last_gamma_not_zero,
    agc_off,
    rate_scaled_twice,
    linear_scaling_of_adam,
    no_warmup,
    constant_warmup,
    short_warmup,
    warmup_without_effect,
    momentum_not_corrected,
    warmup_longer_than_run,
    turns_beyond_end,
    rate_of_zero,
    schedule_unused,
    few_updates,
    log_beyond_run,
    much_smoothing,
    compiled,
)
"""All rules, in the order of their warnings. Another rule cannot be broken here, so the plan only
states it: gradients are averaged over micro-batches, too."""


def _k(cfg: Config, plan: Plan) -> float:
    """The factor on the base rate at the start."""
    return lr_scale(cfg.lr, plan.epochs[0].global_batch_size)


def _largest_batch(plan: Plan) -> int:
    return max(epoch.global_batch_size for epoch in plan.epochs)


def _norm_batches(cfg: Config, plan: Plan) -> list[int]:
    """The numbers of images over which batch norm takes its statistics, rising."""
    workers = plan.world_size if cfg.model.batch_norm == "global" else 1
    return sorted({epoch.batch_per_worker * workers for epoch in plan.epochs})


def batch_norm_text(cfg: Config, plan: Plan) -> str:
    """Over how many images batch norm takes its statistics, and what it costs."""
    if not has_batch_norm(cfg):
        return "no batch norm"
    images = f"{', '.join(map(str, _norm_batches(cfg, plan)))} images per forward pass"
    if cfg.model.batch_norm == "worker" or plan.world_size == 1:
        return f"{images}, per worker"
    return f"{images}, of all {plan.world_size} workers: two sums over workers a layer"


def is_normalizer_free(cfg: Config) -> bool:
    """Whether the model is an NF-ResNet or NFNet, also one of timm's."""
    name = cfg.model.name.rpartition(":")[2]
    return any(part in name for part in ("nfnet", "nf_resnet", "nf_regnet", "nf_ecaresnet"))


def has_batch_norm(cfg: Config) -> bool:
    """Whether the model takes statistics over its batch, judged by its name."""
    network = NETWORKS.get(cfg.model.name)
    return not is_normalizer_free(cfg) if network is None else network.batch_norm
