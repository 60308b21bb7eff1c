"""`hvdtrain study sharpness`, `interpolate`, `landscape` and `hessian`: parse, call, print."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from hvdtrain.cli.study_options import Common, numbers, run_study, with_common

if TYPE_CHECKING:
    from hvdtrain.analysis.study.results import Request, Results
    from hvdtrain.comm.ranks import Comm

ROUNDING = {"fp32": 1e-6, "fp64": 1e-14}
"""Error of a product of the Hessian with a vector, in parts of the largest eigenvalue."""


def register(app: typer.Typer) -> None:
    """Add the commands to the group."""
    for command in (sharpness, interpolate, landscape, hessian):
        app.command()(with_common(command))


def sharpness(
    common: Common,
    epsilon: Annotated[
        str, typer.Option(help="Sizes of the box around the weights, separated by commas.")
    ] = "1e-3,5e-4",
    subspace: Annotated[
        int, typer.Option(min=0, help="Dimensions of the random subspace; 0: only the full space.")
    ] = 100,
    iterations: Annotated[int, typer.Option(min=1, help="Iterations of L-BFGS-B.")] = 10,
) -> None:
    """Measure how far the loss rises in a small box around the weights.

    Keskar's sharpness, 100·(max L − L)/(1 + L): over |z_i| ≤ ε(|w_i| + 1), and in a random subspace.
    The ranks share the images.
    """
    epsilons = numbers("--epsilon", epsilon)

    def study(request: Request, comm: Comm) -> Results:
        from hvdtrain.analysis.study.curvature import run_curvature_study
        from hvdtrain.analysis.study.sharpness_study import SharpnessStudy

        return run_curvature_study(request, comm, SharpnessStudy(epsilons, subspace, iterations))

    run_study("sharpness", common, study, _sharpness_lines)


def interpolate(
    common: Common,
    points: Annotated[int, typer.Option(min=2, help="Number of points.")] = 25,
    span: Annotated[
        str, typer.Option("--range", metavar="FROM,TO", help="First and last α.")
    ] = "-1,2",
) -> None:
    """Draw the loss on the line between two checkpoints.

    At weights (1 − α)·first + α·second; batch norm gets statistics of its own at every point, from
    training images. The ranks share the points.
    """
    low, high = numbers("--range", span, 2)

    def study(request: Request, comm: Comm) -> Results:
        from hvdtrain.analysis.study.landscape import study_interpolation

        return study_interpolation(request, comm, points=points, span=(low, high))

    run_study("interpolate", common, study, _line_lines)


def landscape(
    common: Common,
    dims: Annotated[int, typer.Option(min=1, max=2, help="1: a line. 2: a plane.")] = 2,
    points: Annotated[int, typer.Option(min=2, help="Points along each direction.")] = 25,
    span: Annotated[
        str | None,
        typer.Option(
            "--range",
            metavar="FROM,TO",
            help="Range along each direction. Default: -1,1, or where the trajectory goes.",
        ),
    ] = None,
    directions: Annotated[
        Literal["filter", "plain"],
        typer.Option(help="filter: each filter is scaled to the weights'. plain: all are alike."),
    ] = "filter",
    batch_norm: Annotated[
        Literal["kept", "recomputed"],
        typer.Option(
            help="Statistics of batch norm: the checkpoint's, or new ones at every point."
        ),
    ] = "kept",
    trajectory: Annotated[
        bool,
        typer.Option(
            "--trajectory",
            help="Draw the way of a run through all its checkpoints, in the plane of its first two "
            "principal directions.",
        ),
    ] = False,
) -> None:
    """Draw the loss around checkpoints.

    Along random directions whose filters have the norms of the weights' filters, so that networks can
    be compared; or in the plane of a run's trajectory. The ranks share the points.
    """
    ends = None if span is None else numbers("--range", span, 2)

    def study(request: Request, comm: Comm) -> Results:
        from hvdtrain.analysis.study.landscape import Grid, study_landscape

        grid = Grid(
            dims,
            points,
            None if ends is None else (ends[0], ends[1]),
            normalise=directions == "filter",
            anew=batch_norm == "recomputed",
            trajectory=trajectory,
        )
        return study_landscape(request, comm, grid)

    run_study("landscape", common, study, _line_lines)


def hessian(
    common: Common,
    top: Annotated[int, typer.Option(min=1, help="Number of largest eigenvalues.")] = 5,
    most: Annotated[int, typer.Option(min=1, help="Most products for these.")] = 100,
    tolerance: Annotated[
        float, typer.Option(help="Residual at which these are done, in parts of the largest.")
    ] = 1e-3,
    probes: Annotated[int, typer.Option(min=1, help="Random vectors for trace and density.")] = 10,
    steps: Annotated[int, typer.Option(min=1, help="Products for each random vector.")] = 30,
) -> None:
    """Measure the Hessian of the loss: largest eigenvalues, trace and spectral density.

    By Lanczos' iteration, Hutchinson's estimate and stochastic Lanczos quadrature. The ranks share the
    images.
    """

    def study(request: Request, comm: Comm) -> Results:
        from hvdtrain.analysis.study.curvature import run_curvature_study
        from hvdtrain.analysis.study.hessian_study import HessianStudy

        return run_curvature_study(request, comm, HessianStudy(top, most, tolerance, probes, steps))

    run_study("hessian", common, study, _hessian_lines)


def _sharpness_lines(one: dict[str, Any]) -> list[str]:
    lines = []
    for row in one["sharpness"]:
        space = f"{row['subspace']} random dimensions" if row["subspace"] else "all weights"
        rise = f"loss {row['loss']:.4f} → {row['highest']:.4f}"
        lines.append(f"  ε {row['epsilon']:<8g} {space:<22} sharpness {row['value']:<8.4g} {rise}")
    return lines


def _line_lines(one: dict[str, Any]) -> list[str]:
    losses = [loss for loss in _numbers(one["loss"]) if loss is not None]
    if not losses:
        return ["  the loss is not finite at any point"]
    lines = [f"  loss from {min(losses):.4f} to {max(losses):.4f} at {len(losses):,} points"]
    if "to" in one:
        lines.append(f"  to {one['to']['name']}: distance {one['distance']:.4g}")
    if "variance" in one:
        shares = " and ".join(f"{100 * share:.1f} %" for share in one["variance"])
        lines.append(
            f"  the two directions have {shares} of the squared distances to the last weights"
        )
    return lines


def _numbers(values: Any) -> list[float | None]:
    return [n for row in values for n in _numbers(row)] if isinstance(values, list) else [values]


def _hessian_lines(one: dict[str, Any]) -> list[str]:
    error = one["trace_error"]
    rounding = ROUNDING[one["dtype"]] * max(map(abs, one["largest"]))
    pairs = zip(one["largest"], one["residuals"], strict=True)
    largest = ", ".join(f"{value:.4g} ± {max(left, rounding):.1g}" for value, left in pairs)
    return [
        f"  largest eigenvalues {largest}",
        f"  smallest eigenvalue {one['smallest']:.4g}",
        f"  trace {one['trace']:.4g}" + ("" if error is None else f" ± {error:.2g}"),
    ]
