"""The table of phases that `hvdtrain plan` prints."""

from __future__ import annotations

from hvdtrain.plan.epochs import Plan


def phase_table(plan: Plan, *, cropped: bool) -> str:
    """One row per phase: sizes, batches, steps and rates. `cropped`: crops are random areas."""
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
                _side(first.image_size, last.image_size),
                f"{first.val_image_size} px{' rect' if first.rect_val else ''}",
                str(first.batch_per_worker),
                str(first.global_batch_size),
                str(first.steps),
                f"{first.min_crop_area:g}-1" if cropped else "-",
                f"{first.lr(0):.4g} → {last.lr(last.steps - 1):.4g}",
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    return "\n".join(
        "  ".join(f"{cell:>{width}}" for cell, width in zip(row, widths, strict=True))
        for row in rows
    )


def _side(first: int, last: int) -> str:
    return f"{first} px" if first == last else f"{first}-{last} px"
