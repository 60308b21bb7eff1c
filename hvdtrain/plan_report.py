"""The plan as text: what `hvdtrain plan` prints and a run writes to its log."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest
from typing import Any

from hvdtrain.config import Config
from hvdtrain.plan import Plan, lr_scale, warnings


def plan_text(cfg: Config, plan: Plan, reads: Sequence[dict[str, Any]] = ()) -> str:
    """A table of phases, the facts a large-batch run stands on, the rates at the turns, warnings.

    `reads`: for each phase which copy of a packed dataset it reads, as `text`.
    """
    first = plan.epochs[0]
    batches = sorted({epoch.batch_per_worker for epoch in plan.epochs})
    scale = lr_scale(cfg.lr, first.global_batch_size)
    facts = [
        ("model", cfg.model.name),
        ("images", f"{plan.num_samples:,} an epoch, each once{_reading(cfg)}"),
        ("augmentation", _augmentation(cfg)),
        ("workers", f"{plan.world_size} × accumulate {first.accumulate}"),
        ("updates", f"{plan.total_steps:,} in {len(plan.epochs)} epochs"),
        (
            "learning rate",
            f"{cfg.lr.base:g} at {cfg.lr.base_batch} × {scale:g} ({cfg.lr.scaling} scaling) "
            f"= {cfg.lr.base * scale:g} at {first.global_batch_size}",
        ),
        ("warmup", _warmup(cfg)),
        ("schedule", _schedule(cfg)),
        ("batch-norm batch", ", ".join(map(str, batches)) + " images per forward pass, per worker"),
        ("averaged over", "all images of the global batch, micro-batches included"),
        (
            "optimizer",
            f"SGD, momentum {cfg.optimizer.momentum:g}"
            f"{' (Nesterov)' if cfg.optimizer.nesterov else ''}, rate outside the momentum "
            "buffer, so no momentum correction is needed",
        ),
        (
            "decayed",
            f"{cfg.optimizer.weight_decay:g} on convolution and linear weights; "
            "not on batch-norm scales, shifts and biases",
        ),
    ]
    facts += [
        (f"epochs {epochs[0].index}-{epochs[-1].index + 1} read", read["text"])
        for epochs, read in zip(plan.phases, reads, strict=False)
    ]
    width = max(len(name) for name, _ in facts)
    lines = [_table(plan), ""]
    lines += [f"{name:<{width}}  {value}" for name, value in facts]
    lines += ["", "learning rate at the turns", *_turns(cfg, plan)]
    lines += [f"warning: {text}" for text in warnings(cfg, plan)]
    return "\n".join(lines)


def plan_dict(cfg: Config, plan: Plan, reads: Sequence[dict[str, Any]] = ()) -> dict[str, Any]:
    """The same for programs: one entry per phase, rates at each phase's first and last step."""
    return {
        "world_size": plan.world_size,
        "num_samples": plan.num_samples,
        "total_steps": plan.total_steps,
        "warnings": warnings(cfg, plan),
        "phases": [
            {
                "epochs": [epochs[0].index, epochs[-1].index + 1],
                "image_size": epochs[0].image_size,
                "val_image_size": epochs[0].val_image_size,
                "rect_val": epochs[0].rect_val,
                "batch_per_worker": epochs[0].batch_per_worker,
                "global_batch_size": epochs[0].global_batch_size,
                "min_crop_area": epochs[0].min_crop_area,
                "steps_per_epoch": epochs[0].steps,
                "lr_first": epochs[0].lr(0),
                "lr_last": epochs[-1].lr(epochs[-1].steps - 1),
                "reads": read,
            }
            for epochs, read in zip_longest(plan.phases, reads)
        ],
    }


def _table(plan: Plan) -> str:
    head = (
        "epochs",
        "image",
        "val",
        "batch/worker",
        "global batch",
        "steps/epoch",
        "crop area",
        "lr",
    )
    rows = [head]
    for epochs in plan.phases:
        first, last = epochs[0], epochs[-1]
        rows.append(
            (
                f"{first.index}-{last.index + 1}",
                f"{first.image_size} px",
                f"{first.val_image_size} px{' rect' if first.rect_val else ''}",
                str(first.batch_per_worker),
                str(first.global_batch_size),
                str(first.steps),
                f"{first.min_crop_area:g}-1",
                f"{first.lr(0):.4g} → {last.lr(last.steps - 1):.4g}",
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    return "\n".join(
        "  ".join(f"{cell:>{width}}" for cell, width in zip(row, widths, strict=True))
        for row in rows
    )


def _turns(cfg: Config, plan: Plan) -> list[str]:
    """The rate before and at every epoch where its formula changes."""
    total = len(plan.epochs)
    turns = {float(epochs[0].index) for epochs in plan.phases}
    if cfg.lr.warmup != "none":
        turns.add(cfg.lr.warmup_epochs)
    if cfg.lr.schedule == "step":
        turns.update(cfg.lr.milestones)
    if cfg.lr.schedule == "piecewise":
        turns.update(point[0] for point in cfg.lr.points)
    lines = []
    for t in sorted(turn for turn in turns if 0 < turn < total):
        before = plan.epochs[int(t - 1e-9)].lr_at(t - 1e-9)
        after = plan.epochs[int(t)].lr_at(t)
        lines.append(f"  epoch {t:>6g}  {before:.5g} → {after:.5g}")
    last = plan.epochs[-1]
    return [
        f"  epoch {0:>6}  {plan.epochs[0].lr(0):.5g}",
        *lines,
        f"  epoch {total:>6}  {last.lr(last.steps - 1):.5g} (last step)",
    ]


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


def _augmentation(cfg: Config) -> str:
    data, train = cfg.data, cfg.train
    words: list[str] = [data.augment]
    if data.flip:
        words.append("flip")
    if data.rand_augment:
        words.append("RandAugment {} × {}".format(*data.rand_augment))
    if any(data.color_jitter):
        words.append("colour jitter " + "/".join(f"{x:g}" for x in data.color_jitter))
    words += [
        f"{name} {alpha:g}"
        for name, alpha in (("mixup", train.mixup), ("CutMix", train.cutmix))
        if alpha
    ]
    return ", ".join(words)


def _warmup(cfg: Config) -> str:
    if cfg.lr.warmup == "none":
        return "none"
    kind = "rises every iteration from" if cfg.lr.warmup == "gradual" else "holds"
    return f"{cfg.lr.warmup}: {kind} {cfg.lr.base:g} for {cfg.lr.warmup_epochs:g} epochs"


def _schedule(cfg: Config) -> str:
    lr = cfg.lr
    if lr.schedule == "step":
        return f"step: × {lr.gamma:g} at epochs {', '.join(f'{m:g}' for m in lr.milestones)}"
    if lr.schedule == "piecewise":
        return "piecewise: " + ", ".join(f"×{y:g} at {x:g}" for x, y in lr.points)
    return lr.schedule
