"""The plan as text: what `hvdtrain plan` prints and a run writes to its log."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest
from typing import Any

from hvdtrain.config.schema import Config
from hvdtrain.plan.augmentation import augmentation
from hvdtrain.plan.epochs import Plan
from hvdtrain.plan.optimizer_text import (
    clipping,
    decay,
    has_betas,
    momenta,
    momentum,
    momentum_range,
    optimizer,
    other_rates,
)
from hvdtrain.plan.recipe_check import batch_norm_text, recipe_warnings
from hvdtrain.plan.schedules import FASTAI_FINAL_DIV, lr_scale, turns
from hvdtrain.plan.table import phase_table
from pipelines.reading import Classes, Reading


def plan_text(
    cfg: Config,
    plan: Plan,
    reads: Sequence[Reading] = (),
    classes: Classes | None = None,
    held_out: int | None = None,
) -> str:
    """A table of phases, the facts of the run, its rates where they change, and warnings.

    `reads`: of a packed dataset, what each phase reads. `classes`: if the dataset was opened;
    `held_out`: and if it is split, its images for validation.
    """
    facts = _facts(cfg, plan)
    facts[2:2] = _split(cfg, held_out) + ([] if classes is None else [("classes", classes.text())])
    facts += [
        (f"epochs {epochs[0].index}-{epochs[-1].index + 1} read", read.text())
        for epochs, read in zip(plan.phases, reads, strict=False)
    ]
    width = max(len(name) for name, _ in facts)
    lines = [phase_table(plan, cropped=cfg.data.augment == "random_resized_crop"), ""]
    lines += [f"{name:<{width}}  {value}" for name, value in facts]
    lines += ["", "learning rate at the turns", *_turns(cfg, plan)]
    lines += [f"warning: {text}" for text in recipe_warnings(cfg, plan)]
    return "\n".join(lines)


def plan_dict(
    cfg: Config,
    plan: Plan,
    reads: Sequence[Reading] = (),
    classes: Classes | None = None,
    held_out: int | None = None,
) -> dict[str, Any]:
    """The same for programs: one entry per phase, with the rates of its first and last step."""
    return {
        "world_size": plan.world_size,
        "num_samples": plan.num_samples,
        "held_out": held_out,
        "classes": classes and classes.as_dict(),
        "total_steps": plan.total_steps,
        "warnings": recipe_warnings(cfg, plan),
        "phases": [
            {
                "epochs": [epochs[0].index, epochs[-1].index + 1],
                "image_size": epochs[0].image_size,
                "image_size_last": epochs[-1].image_size,
                "val_image_size": epochs[0].val_image_size,
                "rect_val": epochs[0].rect_val,
                "batch_per_worker": epochs[0].batch_per_worker,
                "global_batch_size": epochs[0].global_batch_size,
                "min_crop_area": epochs[0].min_crop_area,
                "steps_per_epoch": epochs[0].steps,
                "lr_first": epochs[0].lr(0),
                "lr_last": epochs[-1].lr(epochs[-1].steps - 1),
                **momenta(cfg, epochs[0].momentum(0), epochs[-1].momentum(epochs[-1].steps - 1)),
                "reads": read and read.as_dict(),
            }
            for epochs, read in zip_longest(plan.phases, reads)
        ],
    }


def _facts(cfg: Config, plan: Plan) -> list[tuple[str, str]]:
    first = plan.epochs[0]
    return [
        ("model", _model(cfg)),
        ("images", f"{plan.num_samples:,} an epoch, {_often(cfg)}{_reading(cfg)}"),
        ("augmentation", augmentation(cfg)),
        ("workers", f"{plan.world_size} × accumulate {first.accumulate}"),
        ("updates", f"{plan.total_steps:,} in {len(plan.epochs)} epochs"),
        ("learning rate", _rate(cfg, plan)),
        ("warmup", _warmup(cfg)),
        ("schedule", _schedule(cfg)),
        ("batch-norm batch", batch_norm_text(cfg, plan)),
        ("averaged over", "all images of the global batch, micro-batches included"),
        ("optimizer", optimizer(cfg)),
        *other_rates(cfg),
        momentum(cfg, plan),
        ("clipping", clipping(cfg)),
        *_frozen(cfg, plan),
        ("decayed", decay(cfg)),
        ("evaluated", _evaluated(cfg)),
    ]


def _split(cfg: Config, held_out: int | None) -> list[tuple[str, str]]:
    if (share := cfg.data.val_share) is None:
        return []
    whose = f"{share:g} of each class of data.train, chosen by seed {cfg.seed}"
    return [("validation", whose if held_out is None else f"{held_out:,} images: {whose}")]


def _turns(cfg: Config, plan: Plan) -> list[str]:
    """The rate before and at each epoch where its formula changes, with a changing momentum."""
    total = len(plan.epochs)
    low, high = momentum_range(cfg, plan)
    name = "β1" if has_betas(cfg) else "momentum"
    places = {float(epochs[0].index) for epochs in plan.phases}
    if any(phase.lr is None for phase in cfg.phases):
        places.update(turns(cfg.lr, total))
    last = plan.epochs[-1]
    end = last.index + (last.steps - 1) * last.global_batch_size / last.num_samples
    lines = []
    for t in [0.0, *sorted(turn for turn in places if 0 < turn < total), end]:
        epoch = plan.epochs[int(t)]
        text = f"{epoch.lr_at(t):.5g}"
        if 0 < t < end:
            text = f"{plan.epochs[int(t - 1e-9)].lr_at(t - 1e-9):.5g} → {text}"
        if low < high:
            text += f", {name} {epoch.momentum_at(t):.4g}"
        lines.append(f"  epoch {total if t == end else t:>6g}  {text}")
    return [*lines[:-1], f"{lines[-1]} (last step)"]


def _rate(cfg: Config, plan: Plan) -> str:
    lr, batch = cfg.lr, plan.epochs[0].global_batch_size
    scale = lr_scale(lr, batch)
    if all(phase.lr is not None for phase in cfg.phases):
        return (
            f"given by phase at {lr.base_batch}, × {scale:g} ({lr.scaling} scaling) at {batch}, "
            "and so on with the batch"
        )
    return (
        f"{lr.base:g} at {lr.base_batch} × {scale:g} ({lr.scaling} scaling) "
        f"= {lr.base * scale:g} at {batch}"
    )


def _model(cfg: Config) -> str:
    model = cfg.model
    words = [model.name]
    if model.width is not None:
        words.append(f"width {model.width}")
    if model.pool is not None:
        words.append(f"{model.pool} pooling")
    if model.blurpool:
        words.append("blurpool")
    if model.dropout is not None:
        words.append(f"dropout {model.dropout:g}")
    if model.stochastic_depth is not None:
        words.append(f"stochastic depth {model.stochastic_depth:g}")
    return ", ".join(words)


def _evaluated(cfg: Config) -> str:
    if cfg.train.ema_decay is None:
        return "the weights themselves"
    return f"moving average of the weights, decay {cfg.train.ema_decay:g}"


def _often(cfg: Config) -> str:
    repeats = cfg.data.repeats
    return f"each {repeats} times in {repeats} epochs" if repeats > 1 else "each once"


def _reading(cfg: Config) -> str:
    data = cfg.data
    words = []
    if data.shuffle == "shards":
        words.append(f"shards in random order, mixed within {data.shuffle_window:,}")
    if data.cache != "none":
        words.append(f"decoded once, kept in {data.cache}")
    if data.on_bad == "mask":
        words.append(f"up to {data.max_bad_ratio:.2%} bad ones masked")
    return "".join(f"; {word}" for word in words)


def _warmup(cfg: Config) -> str:
    lr = cfg.lr
    if lr.warmup == "none" or all(phase.lr is not None for phase in cfg.phases):
        return "none"
    if lr.warmup == "gradual" and lr.update == "epoch" and lr.warmup_start is None:
        return f"gradual: 1/{lr.warmup_epochs:g} of the rate more every epoch, from 1/{lr.warmup_epochs:g}"
    each = "iteration" if lr.update == "step" else "epoch"
    kind = f"rises every {each} from" if lr.warmup == "gradual" else "holds"
    start = lr.base if lr.warmup_start is None else lr.warmup_start
    return f"{lr.warmup}: {kind} {start:g} for {lr.warmup_epochs:g} epochs"


def _schedule(cfg: Config) -> str:
    lr = cfg.lr
    if all(phase.lr is not None for phase in cfg.phases):
        return "by phase"
    shape = {
        "constant": "constant",
        "step": f"step: × {lr.gamma:g} at epochs {', '.join(f'{m:g}' for m in lr.milestones)}",
        "cosine": "cosine to 0",
        "polynomial": f"polynomial: (1 - share done)^{lr.power:g}",
        "piecewise": "piecewise: " + ", ".join(f"×{y:g} at {x:g}" for x, y in lr.points),
        "onecycle": f"one cycle: from 1/{lr.div_factor:g} up in {lr.pct_start:.0%} of the run, "
        f"down to 1/{lr.div_factor * lr.final_div_factor:g}, {lr.anneal}",
        "onecycle_fastai": f"one cycle (fastai): from 1/{lr.div_factor:g} up and back in "
        f"{1 - lr.pct_final:.0%} of the run, then to 1/{lr.div_factor * FASTAI_FINAL_DIV:g}",
        "cyclical": f"cyclical: {lr.cycle_mode} from 1/{lr.div_factor:g}, "
        f"{lr.cycle_epochs or 0:g} epochs a cycle",
    }[lr.schedule]
    return shape if lr.update == "step" else f"{shape}; each epoch keeps its first rate"


def _frozen(cfg: Config, plan: Plan) -> list[tuple[str, str]]:
    changes = [", ".join(cfg.model.freeze)] if cfg.model.freeze else []
    for epochs in plan.phases:
        first, phase = epochs[0].index, epochs[0].phase
        if phase.freeze:
            changes.append(f"{', '.join(phase.freeze)} from epoch {first}")
        if phase.unfreeze:
            changes.append(f"{', '.join(phase.unfreeze)} trained from epoch {first}")
    return [("frozen", "; ".join(changes))] if changes else []
