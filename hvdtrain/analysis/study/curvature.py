"""Studies of what is near the weights: each evaluation is shared out over the ranks by images."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, Protocol

import torch

from hvdtrain import activity
from hvdtrain.analysis.study.loss import NetworkLoss
from hvdtrain.analysis.study.opened import opened
from hvdtrain.analysis.study.results import Request, Results
from hvdtrain.analysis.study.shared import Ask, led
from hvdtrain.comm.agreement import together
from hvdtrain.comm.ranks import Comm
from hvdtrain.run.subject import find_subjects


class CurvatureStudy(Protocol):
    """One kind of study, with its settings."""

    @property
    def name(self) -> str:
        """Of its files."""

    @property
    def unit(self) -> str:
        """What is counted: evaluations of this kind."""

    def settings(self) -> dict[str, Any]:
        """What results say of them."""

    def check(self) -> None:
        """Raise ConfigError for settings that make no sense."""

    def planned(self, size: int) -> int:
        """About how many evaluations a network of `size` weights needs."""

    def answer(self, loss: NetworkLoss) -> Callable[[torch.Tensor], torch.Tensor]:
        """One evaluation, this rank's part of it: see `shared.led`."""

    def measure(self, weights: torch.Tensor, ask: Ask, seed: int) -> dict[str, Any]:
        """The numbers for JSON of a network with `weights`, float64 [n]; called on rank 0."""


def run_curvature_study(request: Request, comm: Comm, study: CurvatureStudy) -> Results:
    """Study every checkpoint. Every rank must call, and gets the same results, or the same error."""
    with together(comm):
        study.check()
    results = Results(study.name, request.seed, settings=study.settings())
    for subject in find_subjects(request.paths, request.overrides, comm):
        with opened(subject, request.choice, comm, whole=False, only_first=request.dry_run) as it:
            planned, answer, weights = (
                study.planned(it.loss.size),
                study.answer(it.loss),
                it.loss.weights(),
            )
            if request.dry_run:
                seconds = planned * it.seconds(comm, lambda a=answer, w=weights: a(w))  # type: ignore[misc]
                results.add_seconds(subject, it, seconds)
                continue
            activity.enter(f"{study.name} of {subject.name}", planned, study.unit, time_left=True)
            numbers = led(
                comm,
                it.loss.size,
                it.loss.device,
                answer,
                lambda ask, w=weights, n=planned: study.measure(w, _counted(ask, n), request.seed),  # type: ignore[misc]
            )
            # What rank 0 has found, on every rank.
            numbers = json.loads(comm.gather_text(json.dumps(numbers))[0])
            results.add(subject, it, {"parameters": it.loss.size, **numbers})
    return results


def _counted(ask: Ask, planned: int) -> Ask:
    """`ask`, with its progress shown."""
    done = 0

    def counted(question: torch.Tensor) -> torch.Tensor:
        nonlocal done
        answer = ask(question)
        done += 1
        activity.step(min(done, planned))
        return answer

    return counted
