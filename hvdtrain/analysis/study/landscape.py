"""`hvdtrain study landscape` and `interpolate`: whole points are shared out over the ranks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hvdtrain import activity
from hvdtrain.analysis.study.directions import Plane, principal_plane, random_direction
from hvdtrain.analysis.study.loss import SUMS, flat
from hvdtrain.analysis.study.opened import Opened, opened
from hvdtrain.analysis.study.results import Request, Results
from hvdtrain.analysis.study.shared import shared_points
from hvdtrain.checkpoint_files import list_checkpoints
from hvdtrain.comm.agreement import together
from hvdtrain.comm.ranks import Comm
from hvdtrain.errors import CheckpointError, ConfigError, TrainingError
from hvdtrain.paths import RunPaths, run_root
from hvdtrain.run.subject import Subject, find_subjects, require_alike

Range = tuple[float, float]
MARGIN = 0.2
"""Of a trajectory's plot on each side, in parts of its extent."""


@dataclass(frozen=True)
class Grid:
    """The points of a landscape, in units of its one or two directions."""

    dims: int = 2
    points: int = 25
    """Along each direction."""
    span: Range | None = None
    """From, to, along each direction; None: -1 to 1, or with a trajectory where it goes."""
    normalise: bool = True
    anew: bool = False
    """Whether batch norm gets statistics of its own at every point."""
    trajectory: bool = False
    """The directions are the principal ones of the checkpoints of a run."""

    def check(self) -> None:
        """Raise ConfigError for a grid that makes no sense."""
        check_span(self.points, self.span)
        if self.trajectory and self.dims != 2:
            raise ConfigError(f"--trajectory --dims {self.dims}: a trajectory is drawn in a plane")


def check_span(points: int, span: Range | None) -> None:
    """Raise ConfigError for less than two points, or an empty range."""
    if points < 2:
        raise ConfigError(f"--points {points}: expected 2 or more")
    if span is not None and not span[0] < span[1]:
        raise ConfigError(f"--range {span[0]:g},{span[1]:g}: expected FROM,TO with FROM below TO")


def study_landscape(request: Request, comm: Comm, grid: Grid) -> Results:
    """The loss on a line or in a plane through each checkpoint, or in the plane of a trajectory.

    Every rank must call, and gets the same results, or the same error.
    """
    with together(comm):
        grid.check()
        paths = _steps_of(request.paths) if grid.trajectory else list(request.paths)
    results = Results("landscape", request.seed)
    subjects = find_subjects(paths, request.overrides, comm)
    groups = [subjects] if grid.trajectory else [[subject] for subject in subjects]
    for group in groups:
        with opened(
            group[-1],
            request.choice,
            comm,
            whole=True,
            anew=grid.anew,
            only_first=request.dry_run,
        ) as it:
            if request.dry_run:
                each = -(-(grid.points**grid.dims) // comm.size)
                results.add_seconds(group[-1], it, each * it.seconds(comm, it.point))
            else:
                results.add(group[-1], it, _landscape(group, it, request, comm, grid))
    return results


def _landscape(
    group: list[Subject], it: Opened, request: Request, comm: Comm, grid: Grid
) -> dict[str, Any]:
    """The numbers of one landscape, around the last checkpoint of `group`."""
    center, found = it.loss.weights(), {}
    spans = [grid.span or (-1.0, 1.0)] * grid.dims
    if grid.trajectory:
        plane = _plane(group, it, comm)
        directions = list(plane.directions)
        spans = [grid.span or _extent([place[axis] for place in plane.path]) for axis in (0, 1)]
        found = {"path": plane.path, "variance": plane.shares}
        found["path_epochs"] = [one.meta["position"]["epoch"] for one in group]
    else:
        directions = [
            random_direction(
                center.cpu(),
                it.loss.shapes,
                seed=request.seed,
                number=number,
                normalise=grid.normalise,
            )
            for number in range(grid.dims)
        ]
    # Processors of different kinds may draw numbers that differ in the last digit.
    steps = torch.stack(directions).to(center)
    comm.broadcast_({"study.directions": steps})
    axes = [np.linspace(*span, grid.points).tolist() for span in spans]
    places = torch.cartesian_prod(*(torch.tensor(axis, dtype=torch.float64) for axis in axes))
    places = places.view(-1, grid.dims)

    def evaluate(i: int) -> list[float]:
        it.loss.set_weights(center + places[i].to(center) @ steps)
        return it.point()

    activity.enter(f"landscape of {group[-1].name}", len(places), "points", time_left=True)
    values = _finite(shared_points(comm, len(places), len(SUMS), evaluate), group[-1])
    shape = [grid.points] * grid.dims
    return {
        **found,
        "normalised": grid.normalise and not grid.trajectory,
        "axes": axes,
        **{name: values[:, k].view(shape).tolist() for k, name in enumerate(SUMS)},
    }


def _finite(values: Tensor, subject: Subject) -> Tensor:
    """`values` [points, SUMS]. Raises TrainingError if no loss among them is finite."""
    if not values[:, 0].isfinite().any():
        raise TrainingError(
            f"{subject.path}: the loss is not finite at any point: give a smaller --range"
        )
    return values


def _steps_of(paths: Sequence[Path]) -> list[Path]:
    """The checkpoints of a trajectory in order: all of a run, or those that were given."""
    if len(paths) > 1:
        return list(paths)
    folder = RunPaths(run_root(paths[0])).checkpoints
    found = sorted(list_checkpoints(folder), key=lambda path: path.name)
    if not found:
        raise CheckpointError(f"{paths[0]}: no checkpoints: expected a run directory")
    return found


def _plane(group: list[Subject], it: Opened, comm: Comm) -> Plane:
    """The plane of the checkpoints; the network has the weights of the last one afterwards."""
    with together(comm):
        weights = []
        for subject in group:
            require_alike(group[-1], subject)
            subject.load(it.loss.model)
            weights.append(it.loss.weights())
        return principal_plane(weights)


def _extent(places: Sequence[float]) -> Range:
    margin = MARGIN * (max(places) - min(places))
    return min(places) - margin, max(places) + margin


def study_interpolation(
    request: Request, comm: Comm, *, points: int = 25, span: Range = (-1.0, 2.0)
) -> Results:
    """The loss on the line (1 − α) w₁ + α w₂ through two checkpoints, α in `span`.

    Batch norm gets statistics of its own at every point. Every rank must call, and gets the same
    results, or the same error.
    """
    with together(comm):
        check_span(points, span)
        if len(request.paths) != 2:
            raise ConfigError(f"interpolate: expected two checkpoints, found {len(request.paths)}")
    results = Results("interpolate", request.seed)
    first, second = find_subjects(request.paths, request.overrides, comm)
    with opened(
        first, request.choice, comm, whole=True, anew=True, only_first=request.dry_run
    ) as it:
        ends = _both_ends(first, second, it, comm)
        if request.dry_run:
            seconds = -(-points // comm.size) * it.seconds(comm, it.point)
            results.add_seconds(first, it, seconds)
            return results
        alphas = np.linspace(*span, points).tolist()

        def evaluate(i: int) -> list[float]:
            _set_between(it, *ends, alphas[i])
            return it.point()

        activity.enter(f"from {first.name} to {second.name}", points, "points", time_left=True)
        values = _finite(shared_points(comm, points, len(SUMS), evaluate), first)
        distance = float((flat(list(ends[0].values())) - flat(list(ends[1].values()))).norm())
        numbers = {"to": second.about, "distance": distance, "axes": [alphas]}
        results.add(
            first, it, {**numbers, **{name: values[:, k].tolist() for k, name in enumerate(SUMS)}}
        )
    return results


def _both_ends(
    first: Subject, second: Subject, it: Opened, comm: Comm
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """All weights of both checkpoints, float64 by name; batch-norm statistics among them."""
    with together(comm):
        require_alike(first, second)
        ends = []
        for subject in (first, second):
            subject.load(it.loss.model)
            state = it.loss.model.state_dict()
            ends.append({k: v.double().clone() for k, v in state.items() if v.is_floating_point()})
    return ends[0], ends[1]


@torch.no_grad()
def _set_between(
    it: Opened, first: dict[str, Tensor], second: dict[str, Tensor], alpha: float
) -> None:
    state = it.loss.model.state_dict()
    for name, one in first.items():
        state[name].copy_((1 - alpha) * one + alpha * second[name])
