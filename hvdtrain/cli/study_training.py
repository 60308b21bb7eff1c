"""`hvdtrain study batch-size`: parse, call, print."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hvdtrain.cli.job import ConfigFile, Overrides
from hvdtrain.cli.progress import doing
from hvdtrain.cli.study_costs import costs_text
from hvdtrain.cli.study_lists import counts_of, rates_of, words_of
from hvdtrain.config.load import load_config
from hvdtrain.errors import ConfigError, Preempted
from hvdtrain.launch.variables import launched_size
from hvdtrain.streams import say

if TYPE_CHECKING:
    from hvdtrain.analysis.study.asked import Asked
    from hvdtrain.analysis.study.study import Study
    from hvdtrain.analysis.study.surfaces import Surfaces
    from hvdtrain.analysis.study.trainer import Outcome, Trainer
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
    measure: Annotated[
        str,
        typer.Option(
            metavar="WHAT,WHAT…",
            help="At the weights of finished members: sharpness, noise-scale, interpolate, landscape, as the "
            "commands of these names do; or none.",
        ),
    ] = "sharpness,noise-scale,interpolate,landscape",
    images: Annotated[
        int, typer.Option(min=1, help="Training images of these measurements.")
    ] = 1000,
    output: Output = None,
    dry_run: DryRun = False,
    slurm: Slurm = False,
) -> None:
    """Train at several batch sizes, with the rate as it is and scaled, and report what changes.

    A study that was stopped or killed goes on with the same command: finished members are never
    trained again. Exit code 1: some members or measurements failed; 75: stopped, every member after a
    checkpoint.
    """
    from hvdtrain.analysis.study.asked import Asked
    from hvdtrain.analysis.study.surfaces import MEASURES

    measures = () if measure == "none" else words_of(measure, "--measure", (*MEASURES, "none"))
    if "none" in measures:
        raise ConfigError(f"--measure: {measure}: none goes alone")
    cfg = _config(config, overrides, patience)
    scalings = tuple(words_of(scaling, "--scaling", SCALINGS))
    asked = Asked(
        "batch-size",
        tuple(counts_of(batches, "--batches")),
        scalings,
        seeds,
        ranks=(ranks,),
        threads=_threads(cfg, jobs * ranks),
    )
    around = tuple(measures), images
    _run(asked, cfg, jobs, hours, output, around, dry_run=dry_run, slurm=slurm)


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
        tuple(counts_of(batches, "--batches")),
        seeds=seeds,
        rates=tuple(sorted(rates_of(rates))),
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
    counts = tuple(counts_of(ranks, "--ranks"))
    asked = Asked(
        "parallel",
        tuple(counts_of(batches, "--batches")),
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
    around: tuple[tuple[str, ...], int] = ((), 1),
    *,
    dry_run: bool,
    slurm: bool,
) -> None:
    """Train what was asked, and then measure `around` the weights: what, and on how many images."""
    if launched_size(os.environ) > 1:
        raise ConfigError("study: it starts its own ranks: run it without a launcher, with --ranks")
    from hvdtrain.analysis.study.halving import require_extendable, train_by_halving
    from hvdtrain.analysis.study.study import Study, summary
    from hvdtrain.analysis.study.surfaces import Surfaces
    from hvdtrain.analysis.study.trainer import gpus_here

    if asked.halving:
        require_extendable(cfg)
    root = output or Path(cfg.output) / f"{cfg.name}-{asked.kind}"
    with doing("listing the images"):
        study = Study.of(root, asked, cfg)
        trainer = study.trainer(jobs, say, hours, gpus=gpus_here(os.environ))
        surfaces = Surfaces(study.folder, *around, cfg.seed, study.asked.threads)
        if dry_run:
            say(costs_text(study, jobs, surfaces))
            return
        lock = study.begin()
        try:
            if slurm:
                say(_script(study))
                return
            outcome = (
                train_by_halving(study, trainer) if asked.halving else trainer.train(study.members)
            )
            unmeasured = _measured(study, trainer, surfaces, outcome)
        finally:
            lock.release()
    if outcome.stopped:
        raise Preempted(
            f"stopped; every member that trained has a checkpoint: the same command goes on with {root}"
        )
    say(summary(outcome, root, unmeasured))
    if outcome.failed or unmeasured:
        raise typer.Exit(1)


def _measured(study: Study, trainer: Trainer, surfaces: Surfaces, outcome: Outcome) -> int:
    """Measure around the weights and write the report; returns how many measurements failed. A signal is
    noted in `outcome`."""
    if outcome.signalled:
        return 0
    tasks = study.tasks(surfaces, trainer)
    ending = surfaces.measure(tasks, trainer.processes, say)
    outcome.stopped |= ending.stopped
    outcome.signalled = ending.signalled
    if not ending.signalled:
        study.collect(trainer, say, surfaces.found(tasks))
    return 0 if outcome.stopped else len(surfaces.left(tasks))


def _config(config: str, overrides: list[str] | None, patience: int | None) -> Config:
    more = [] if patience is None else [f"train.patience={patience}"]
    return load_config(config, [*(overrides or []), *more])


def _threads(cfg: Config, at_once: int) -> int:
    """Compute threads of a rank, where so many ranks train at once."""
    cores = len(os.sched_getaffinity(0))
    return cfg.train.compute_threads or max(1, cores // at_once)


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
