"""`hvdtrain study noise-scale`: each run or checkpoint with its noise scale, trade-off and nodes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from hvdtrain.analysis.study.noise.measure import measure, seconds
from hvdtrain.analysis.study.noise.nodes import Answer, Own, Predictor, answer, doubling, offer_of
from hvdtrain.analysis.study.noise.recorded import Recorded, read_recorded
from hvdtrain.analysis.study.noise.speed import speed_of
from hvdtrain.analysis.study.noise.trade_off import Stage, TradeOff, of_plan, of_recorded
from hvdtrain.analysis.study.results import Request
from hvdtrain.comm.agreement import together
from hvdtrain.comm.ranks import Comm
from hvdtrain.config.load import load_config
from hvdtrain.config.schema import Config
from hvdtrain.errors import ResourceError
from hvdtrain.paths import RunPaths, run_root
from hvdtrain.plan.epochs import make_plan
from hvdtrain.report.run import read_run
from hvdtrain.run.changes import read_begun
from hvdtrain.run.subject import Subject, find_subjects
from hvdtrain.scaling.ends import between, low_high
from hvdtrain.scaling.inputs import clusters
from hvdtrain.scaling.network import Cluster
from hvdtrain.scaling.overlap import sigmas
from hvdtrain.scaling.wire import wire_of

FAR = 1.5
"""Predicted ÷ measured time of a run, or the inverse, from which there is a warning."""


@dataclass(frozen=True)
class Question:
    """Which batch on how many nodes, as `hvdtrain scaling predict` asks."""

    links: str
    """Speeds in Gbit/s, separated by commas."""
    max_nodes: int = 64
    gpus: int | None = None
    """Ranks of a node; None: as many as the run has."""
    network: Literal["tcp", "rdma"] = "tcp"
    algorithm: Literal["flat", "hierarchical"] = "flat"
    efficiency: float | None = None
    latency_us: float | None = None
    straggler: float | None = None
    """None: the range of `SIGMA`."""
    least_saving: float = 0.2
    calibration: Path | None = None


@dataclass
class Found:
    """What is known of one run or checkpoint."""

    name: str
    path: Path
    recorded: Recorded | None
    """Of a run; None for a checkpoint."""
    measured: dict[str, Any]
    """Of a checkpoint: the numbers of `Estimate` and what they are of; empty for a run."""
    trade_off: TradeOff | None
    """None where the noise scale has no upper bound."""
    answers: list[Answer] = field(default_factory=list)
    """One for each link."""
    speed: str = ""
    """Of one worker: where it is from."""


@dataclass
class Results:
    """Of all; `seconds` is what measuring would take, only with `dry_run`."""

    found: list[Found] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    seconds: float | None = None


@dataclass(frozen=True)
class _Origin:
    """What the prediction needs of a run."""

    cfg: Config
    root: Path
    ranks: int
    images: int | None


def study_noise_scale(request: Request, comm: Comm, question: Question | None) -> Results:
    """Runs by what they recorded, checkpoints by what is measured at them.

    Every rank must call. Rank 0 has all of the results, the others what is measured. Raises ConfigError,
    CheckpointError, DataError or ResourceError on all ranks.
    """
    results = Results(seconds=0.0 if request.dry_run else None)
    runs: list[bool] = json.loads(comm.gather_text(json.dumps([*map(is_run, request.paths)]))[0])
    for path, recorded in zip(request.paths, runs, strict=True):
        if recorded:
            with together(comm):
                if comm.rank == 0:
                    _add_recorded(path, request.overrides, question, results)
            continue
        [subject] = find_subjects([path], request.overrides, comm)
        if request.dry_run:
            _it, needed = seconds(subject, request.choice, comm)
            results.seconds = (results.seconds or 0.0) + needed
            continue
        it, numbers = measure(subject, request.choice, comm)
        results.warnings += [line for line in it.warnings if line not in results.warnings]
        with together(comm):
            if comm.rank == 0:
                measured = {**subject.about, **it.about, **numbers}
                _add_measured(subject, measured, question, results)
    return results


def is_run(path: Path) -> bool:
    """Whether `path` is a run directory, and no checkpoint."""
    return RunPaths(path).events.is_file() or RunPaths(path).config.is_file()


def _add_recorded(
    path: Path, overrides: list[str], question: Question | None, results: Results
) -> None:
    recorded = read_recorded(path)
    trade_off = of_recorded(recorded)
    found = Found(recorded.name, path, recorded, {}, trade_off)
    if recorded.known < 0.95:
        results.warnings.append(
            f"{path}: in {1 - recorded.known:.0%} of the updates noise hid the signal, or nothing was measured "
            "yet: the mean is that of the others, and may be too low"
        )
    if question is not None:
        begun = read_begun(RunPaths(path))
        cfg = load_config(RunPaths(path).config, overrides)
        ranks = read_run(path).attempts[-1].world_size or begun.world_size or 1
        origin = _Origin(cfg, path, ranks, begun.images)
        _add_nodes(found, origin, question, results, [])
        predicted = [low_high(answer.own.seconds) for answer in found.answers]
        low, high = min(low for low, _ in predicted), max(high for _, high in predicted)
        if not low / FAR < recorded.seconds < high * FAR:
            said = dict.fromkeys(between(answer.own.seconds, ".3g") for answer in found.answers)
            results.warnings.append(
                f"{path}: its steps took {recorded.seconds:.3g} s, and the model says "
                f"{' or '.join(f'{s} s' for s in said)} of them: what it says of other "
                "batches and nodes may be as far off; the report of the run says what its time was lost to"
            )
    results.found.append(found)


def _add_measured(
    subject: Subject, measured: dict[str, Any], question: Question | None, results: Results
) -> None:
    ranks = int(subject.meta["world_size"]) if subject.meta.get("world_size") else 1
    images = subject.meta["labels"].get("train_images") or measured["images_of_split"]
    plan = make_plan(subject.cfg, ranks, images)
    steps = [(Stage(e.image_size, e.global_batch_size), e.steps) for e in plan.epochs]
    found = Found(subject.name, subject.path, None, measured, None)
    if measured["resolved"]:
        found.trade_off = of_plan(steps, measured["scale"])
        if question is not None:
            bounds = [of_plan(steps, measured[end]) for end in ("low", "high")]
            origin = _Origin(subject.cfg, run_root(subject.path), ranks, images)
            _add_nodes(found, origin, question, results, bounds)
    results.found.append(found)


def _add_nodes(
    found: Found, origin: _Origin, question: Question, results: Results, bounds: list[TradeOff]
) -> None:
    """One answer for each link; `bounds`: the trade-off at both ends of the interval."""
    assert found.trade_off is not None
    nodes = _nodes(origin, results)
    gpus = question.gpus or max(1, origin.ranks // nodes)
    asked = clusters(
        ",".join(map(str, doubling(question.max_nodes))),
        gpus,
        question.links,
        network=question.network,
        algorithm=question.algorithm,
        efficiency=question.efficiency,
        latency_us=question.latency_us,
    )
    cfg = origin.cfg
    speed = speed_of(cfg, origin.root, question.calibration)
    found.speed = speed.about
    predictor = Predictor(speed, wire_of(cfg), sigmas(question.straggler))
    smallest = min(phase.batch_per_worker for phase in cfg.phases)
    for gbit in dict.fromkeys(cluster.network.link_gbit for cluster in asked):
        of_link = [cluster for cluster in asked if cluster.network.link_gbit == gbit]
        first = of_link[0]
        here = Cluster(nodes, max(1, origin.ranks // nodes), first.network, first.algorithm)
        own = Own(smallest, cfg.train.accumulate, here)
        made = answer(
            found.trade_off,
            predictor,
            own,
            of_link,
            images=origin.images,
            least_saving=question.least_saving,
        )
        found.answers.append(_bounded(made, predictor, of_link, bounds))


def _bounded(
    made: Answer, predictor: Predictor, asked: Sequence[Cluster], bounds: list[TradeOff]
) -> Answer:
    advised = made.advised
    cluster = next(cluster for cluster in asked if cluster.hosts == advised.nodes)
    share = (advised.batch_per_worker, advised.accumulate)
    times = [offer_of(bound, predictor, cluster, *share).seconds for bound in bounds]
    own = made.own.seconds
    faster = sorted(
        mine / its for each in times for mine, its in zip(own.pair(), each.pair(), strict=True)
    )
    return replace(made, bounds=(faster[0], faster[-1])) if faster else made


def _nodes(origin: _Origin, results: Results) -> int:
    """Of the run; 1 is assumed, with a warning, where several ranks may have had more."""
    try:
        nodes = read_run(origin.root).attempts[-1].nodes
    except ResourceError:
        nodes = None
    if nodes is None and origin.ranks > 1:
        results.warnings.append(
            f"{origin.root}: does not say on how many nodes its {origin.ranks} ranks were: 1 is assumed"
        )
    return min(nodes or 1, origin.ranks)
