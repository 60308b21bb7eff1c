"""`hvdtrain study batch-size`: parse, call, print."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hvdtrain.cli.job import ConfigFile, Overrides
from hvdtrain.cli.progress import doing
from hvdtrain.config.load import load_config
from hvdtrain.errors import ConfigError, Preempted
from hvdtrain.launch.variables import launched_size
from hvdtrain.streams import say

if TYPE_CHECKING:
    from hvdtrain.analysis.study.asked import Asked
    from hvdtrain.analysis.study.study import Study
    from hvdtrain.config.schema import Config

SCALINGS = ("none", "linear", "sqrt")
Output = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        help="Folder of the study. Default: OUTPUT/<name>-<kind>. It is gone on with.",
    ),
]
Jobs = Annotated[
    int,
    typer.Option(min=1, help="Members that train at once, each on its share of cores and GPUs."),
]
Seeds = Annotated[int, typer.Option(min=1, help="Runs of each kind, from the config's seed up.")]
Patience = Annotated[
    int | None,
    typer.Option(min=1, help="Replaces train.patience: evaluations without a lower loss."),
]
Hours = Annotated[
    float | None, typer.Option(min=0, help="Stop after this time, as by Ctrl-C. Default: none.")
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Only show the members, their updates and the hours.")
]
Slurm = Annotated[
    bool,
    typer.Option("--slurm", help="Only print a batch script: an array with a task per member."),
]


def register(app: typer.Typer) -> None:
    """Add the commands that train."""
    app.command("batch-size")(batch_size)
    app.command("lr-batch")(lr_batch)
    app.command("parallel")(parallel)


def batch_size(
    config: ConfigFile,
    overrides: Overrides = None,
    batches: Annotated[
        str, typer.Option(metavar="N,N…", help="Global batches; rates are of the first.")
    ] = "32,64,128,256",
    scaling: Annotated[
        str,
        typer.Option(
            metavar="HOW,HOW…", help="How the rate follows the batch: none, linear, sqrt."
        ),
    ] = "none,linear",
    seeds: Seeds = 3,
    ranks: Annotated[int, typer.Option(min=1, help="Ranks of each member, on this host.")] = 1,
    jobs: Jobs = 1,
    patience: Patience = None,
    hours: Hours = None,
    output: Output = None,
    dry_run: DryRun = False,
    slurm: Slurm = False,
) -> None:
    """Train at several batch sizes, with the rate as it is and scaled, and report what changes.

    A study that was stopped or killed goes on with the same command: finished members are never
    trained again. Exit code 1: some members failed; 75: stopped, every member after a checkpoint.
    """
    from hvdtrain.analysis.study.asked import Asked

    cfg = _config(config, overrides, patience)
    scalings = tuple(_words(scaling, "--scaling", SCALINGS))
    asked = Asked(
        "batch-size",
        tuple(_numbers(batches, "--batches")),
        scalings,
        seeds,
        ranks=(ranks,),
        threads=_threads(cfg, jobs * ranks),
    )
    _run(asked, cfg, jobs, hours, output, dry_run=dry_run, slurm=slurm)


def lr_batch(
    config: ConfigFile,
    overrides: Overrides = None,
    batches: Annotated[str, typer.Option(metavar="N,N…", help="Global batches.")] = "32,64,128,256",
    rates: Annotated[
        str, typer.Option(metavar="R,R…", help="Learning rates, each at every batch.")
    ] = "0.005,0.01,0.02,0.04,0.08,0.16",
    seeds: Seeds = 1,
    ranks: Annotated[int, typer.Option(min=1, help="Ranks of each member, on this host.")] = 1,
    halving: Annotated[
        bool,
        typer.Option(help="Train only the better half of the rates further, again and again."),
    ] = True,
    jobs: Jobs = 1,
    patience: Patience = None,
    hours: Hours = None,
    output: Output = None,
    dry_run: DryRun = False,
) -> None:
    """Train a grid of rates and batches: which rate is best for which batch.

    Successive halving costs about a third of the whole grid. Goes on like batch-size.
    """
    from hvdtrain.analysis.study.asked import Asked

    cfg = _config(config, overrides, patience)
    asked = Asked(
        "lr-batch",
        tuple(_numbers(batches, "--batches")),
        seeds=seeds,
        rates=tuple(sorted(_rates(rates))),
        ranks=(ranks,),
        threads=_threads(cfg, jobs * ranks),
        halving=halving,
    )
    _run(asked, cfg, jobs, hours, output, dry_run=dry_run, slurm=False)


def parallel(
    config: ConfigFile,
    overrides: Overrides = None,
    batches: Annotated[str, typer.Option(metavar="N,N…", help="Global batches.")] = "32,64,128,256",
    ranks: Annotated[
        str, typer.Option(metavar="N,N…", help="Numbers of ranks, on this host.")
    ] = "1,2,4",
    seeds: Seeds = 1,
    patience: Patience = None,
    hours: Hours = None,
    output: Output = None,
    dry_run: DryRun = False,
) -> None:
    """Train each batch on several numbers of ranks: time per epoch and to the lowest loss.

    Beside each stands what hvdtrain scaling predicts. One member trains at a time.
    """
    from hvdtrain.analysis.study.asked import Asked

    cfg = _config(config, overrides, patience)
    counts = tuple(_numbers(ranks, "--ranks"))
    asked = Asked(
        "parallel",
        tuple(_numbers(batches, "--batches")),
        seeds=seeds,
        ranks=counts,
        threads=_threads(cfg, max(counts)),
    )
    _run(asked, cfg, 1, hours, output, dry_run=dry_run, slurm=False)


def _run(
    asked: Asked,
    cfg: Config,
    jobs: int,
    hours: float | None,
    output: Path | None,
    *,
    dry_run: bool,
    slurm: bool,
) -> None:
    if launched_size(os.environ) > 1:
        raise ConfigError("study: it starts its own ranks: run it without a launcher, with --ranks")
    from hvdtrain.analysis.study.halving import require_extendable, train_by_halving
    from hvdtrain.analysis.study.study import Study, summary
    from hvdtrain.analysis.study.trainer import gpus_here

    if asked.halving:
        require_extendable(cfg)
    root = output or Path(cfg.output) / f"{cfg.name}-{asked.kind}"
    with doing("listing the images"):
        study = Study.of(root, asked, cfg)
        trainer = study.trainer(jobs, say, hours, gpus=gpus_here(os.environ))
        if dry_run:
            say(_costs_text(study, jobs))
            return
        lock = study.begin()
        try:
            if slurm:
                say(_script(study))
                return
            outcome = (
                train_by_halving(study, trainer) if asked.halving else trainer.train(study.members)
            )
            if not outcome.signalled:
                study.collect(trainer, say)
        finally:
            lock.release()
    if outcome.stopped:
        raise Preempted(
            f"stopped; every member that trained has a checkpoint: the same command goes on with {root}"
        )
    say(summary(outcome, root))
    if outcome.failed:
        raise typer.Exit(1)


def _config(config: str, overrides: list[str] | None, patience: int | None) -> Config:
    more = [] if patience is None else [f"train.patience={patience}"]
    return load_config(config, [*(overrides or []), *more])


def _threads(cfg: Config, at_once: int) -> int:
    """Compute threads of a rank, where so many ranks train at once."""
    cores = len(os.sched_getaffinity(0))
    return cfg.train.compute_threads or max(1, cores // at_once)


def _words(text: str, option: str, known: tuple[str, ...]) -> list[str]:
    words = [*dict.fromkeys(text.split(","))]
    if unknown := [word for word in words if word not in known]:
        raise ConfigError(f"{option}: {unknown[0]!r}: expected some of {', '.join(known)}")
    return words


def _numbers(text: str, option: str) -> list[int]:
    words = [*dict.fromkeys(text.split(","))]
    if wrong := [word for word in words if not word.isdigit() or not 0 < int(word) < 2**31]:
        raise ConfigError(f"{option}: {wrong[0]!r}: expected whole numbers such as 32,64")
    return [int(word) for word in words]


def _rates(text: str) -> list[float]:
    words = [*dict.fromkeys(text.split(","))]
    found: list[float] = []
    for word in words:
        try:
            found.append(float(word))
        except ValueError:
            found.append(0.0)
        if not 0 < found[-1] < math.inf:
            raise ConfigError(f"--rates: {word!r}: expected numbers above 0 such as 0.01,0.02")
    return found


def _costs_text(study: Study, jobs: int) -> str:
    from hvdtrain.analysis.study.cost import hours_left
    from hvdtrain.analysis.study.halving import share

    table = study.costs(study.trainer(jobs, say))
    lines = ["member                      batch      rate  ranks  updates     hours"]
    for cost in table:
        member = cost.member
        hours = "done" if cost.finished else f"{(cost.seconds or 0) / 3600:.2f}"
        lines.append(
            f"{member.name:<26}  {member.batch:>5}  {member.rate:>8g}  {member.ranks:>5}  "
            f"{cost.updates:>7,}  {hours:>8}"
        )
    left, at_once = hours_left(table, jobs), f", {jobs} at once" if jobs > 1 else ""
    if study.asked.halving:
        part = share(len(study.asked.rates), sum(phase.epochs for phase in study.cfg.phases))
        left, at_once = part * left, f"{at_once}, {part:.0%} of the whole grid by halving"
    patience = study.cfg.train.patience
    most = "" if patience is None else ", at most: train.patience ends members earlier"
    lines.append(
        f"{len(table)} members, {left:.2f} hours of training and evaluation{at_once}{most}"
    )
    return "\n".join(lines)


def _script(study: Study) -> str:
    from hvdtrain.launch.sbatch import Script, render

    trainer = study.trainer(1, say)
    left = [member for member in study.members if not trainer.finished(member)]
    if not left:
        raise ConfigError(f"--slurm: all members of {study.folder.root} are finished")
    script = Script(
        name=f"{study.cfg.name}-study",
        config=str(study.folder.config),
        ranks_per_node=max(study.asked.ranks),
        cores_per_rank=study.asked.threads,
        sweep=[" ".join(member.settings) for member in left],
        runs=[str(study.folder.run(member.name)) for member in left],
    )
    return render(script)
