"""Every study of checkpoints `a` and `b` on all ranks of this job, on two of them, and on one alone.

Writes found.json: by study, by number of ranks. Fails if ranks get different numbers.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from hvdtrain.analysis.study.curvature import run_curvature_study
from hvdtrain.analysis.study.hessian_study import HessianStudy
from hvdtrain.analysis.study.images import Choice
from hvdtrain.analysis.study.landscape import Grid, study_interpolation, study_landscape
from hvdtrain.analysis.study.noise.measure import measure
from hvdtrain.analysis.study.results import Request, Results
from hvdtrain.analysis.study.sharpness_study import SharpnessStudy
from hvdtrain.comm.ranks import Comm, Solo
from hvdtrain.comm.start import init_comm
from hvdtrain.errors import CheckpointError
from hvdtrain.run.subject import find_subjects

A, B = Path("a"), Path("b")


class Pairs:
    """Ranks 0 and 1 as a job of two. The others do as rank 1 does, but their part of a sum is zero."""

    size = local_size = 2

    def __init__(self, comm: Comm) -> None:
        self._comm = comm
        self.rank = self.local_rank = min(comm.rank, 1)

    def sum_(self, tensor: torch.Tensor, name: str) -> torch.Tensor:
        return self._comm.sum_(tensor.zero_() if self._comm.rank > 1 else tensor, name)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._comm, name)

    def gather(self, row: torch.Tensor, name: str) -> torch.Tensor:
        return self._comm.gather(row, name)[:2]

    def gather_text(self, text: str) -> list[str]:
        return self._comm.gather_text(text)[:2]


def request(*paths: Path) -> Request:
    return Request(paths, [], Choice(images=8, batch=2, dtype="fp64"))


def measured(comm: Comm) -> Results:
    """The noise scale on all 22 images in 16 batches, mixed and with other colours."""
    results = Results("noise-scale", 0)
    [subject] = find_subjects([A], ["train.mixup=0.4", "data.color_jitter=[0.4, 0.4, 0, 0]"], comm)
    it, numbers = measure(subject, Choice(images=22, batch=3, dtype="fp64"), comm)
    results.add(subject, it, numbers)
    return results


STUDIES: dict[str, Callable[[Comm], Results]] = {
    "sharpness": lambda comm: run_curvature_study(
        request(A), comm, SharpnessStudy((1e-3,), dimensions=2, iterations=2)
    ),
    "hessian": lambda comm: run_curvature_study(
        request(A), comm, HessianStudy(top=2, most=4, probes=2, steps=2)
    ),
    "noise-scale": measured,
    "interpolate": lambda comm: study_interpolation(request(A, B), comm, points=4),
    "landscape": lambda comm: study_landscape(request(A), comm, Grid(points=3, trajectory=True)),
}


def main() -> None:
    comm = init_comm()
    found: dict[str, dict[int, Any]] = {}
    for name, study in STUDIES.items():
        found[name] = {1: study(Solo()).as_dict()} if comm.rank == 0 else {}
        for group in (Pairs(comm), comm):
            result = study(group).as_dict()
            found[name][group.size] = result
            assert len(set(comm.gather_text(json.dumps(result)))) == 1, "ranks differ"
    with pytest.raises(CheckpointError, match="spans no plane") as refused:
        study_landscape(request(B), comm, Grid(trajectory=True))
    assert refused.value.everywhere
    if comm.rank == 0:
        Path("found.json").write_text(json.dumps(found))
    comm.shutdown()


if __name__ == "__main__":
    main()
