"""`hvdtrain launch`: parse, call, print."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

import typer
from typer.core import TyperGroup

from hvdtrain.cli.job import ConfigFile, Overrides
from hvdtrain.cli.progress import doing
from hvdtrain.cli.restarts import Attempts, can_share, resumable, supervised, with_batch_ranks
from hvdtrain.comm.engines import horovod_installed
from hvdtrain.config.load import load_config
from hvdtrain.config.schema import Comm
from hvdtrain.errors import ConfigError
from hvdtrain.launch import start
from hvdtrain.launch.commands import Controller, LaunchRequest, named_config
from hvdtrain.launch.forwarding import kept_back
from hvdtrain.launch.placement import placement_text
from hvdtrain.launch.sbatch import Script, render, sweep_settings
from hvdtrain.launch.spares import Pool
from hvdtrain.preflight.hosts import HostQuery, require_hosts

BatchLauncher = Literal["srun", "mpirun"]
Container = Literal["apptainer", "pyxis"]


class _Group(TyperGroup):
    """Makes `run` the default: `launch OPTIONS -- train …` is `launch run OPTIONS -- train …`."""

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:  # type: ignore[override]
        if args and args[0] not in (*self.commands, "--help"):
            args = ["run", *args]
        return super().parse_args(ctx, args)


launch_app = typer.Typer(
    cls=_Group,
    help="Start ranks on one or several hosts, or print a Slurm script.",
    no_args_is_help=True,
)


@launch_app.command("run")
def run(
    arguments: Annotated[
        list[str], typer.Argument(metavar="-- train CONFIG …", help="Command of every rank.")
    ],
    hosts: Annotated[
        str | None,
        typer.Option(help="Hosts and ranks on each: a:4,b:4. Default: those of the Slurm job."),
    ] = None,
    hostfile: Annotated[
        Path | None, typer.Option(help="File with hosts: one per line, a:4 or a slots=4.")
    ] = None,
    nodes: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Use the first N hosts. With --max-restarts the others are spares: one takes the "
            "place of a host that does not answer, or fails twice in a row. Default: all hosts.",
        ),
    ] = None,
    min_nodes: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="M",
            help="With --max-restarts: where a host is lost and no spare is left, go on with those that "
            "answer, at least M, with the same global batch; and with more as soon as they answer again. "
            "Default: never with fewer.",
        ),
    ] = None,
    launcher: Annotated[
        Literal["auto", "mpirun", "horovodrun", "srun"],
        typer.Option(help="auto: srun in a Slurm job, otherwise mpirun."),
    ] = "auto",
    controller: Annotated[
        Controller | None,
        typer.Option(help="How ranks find each other. Default: gloo with srun, otherwise mpi."),
    ] = None,
    forward: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME", help="Also forward this environment variable; can be repeated."
        ),
    ] = None,
    max_restarts: Annotated[
        int,
        typer.Option(
            min=0,
            max=1000,
            metavar="N",
            help="After a crash start train again from its last checkpoint, at most N times in "
            "succession without a new checkpoint. Not after a fault of the config, the data or the "
            "checkpoint, nor after a stop by a signal.",
        ),
    ] = 0,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print placement and command, but start nothing.")
    ] = False,
) -> None:
    """Start one process per rank.

    For example: hvdtrain launch --hosts a:4,b:4 -- train CONFIG. The word run can be left out.
    Prints the placement of the ranks and the launcher's command, then runs it.
    """
    env = dict(os.environ)
    if arguments[0].endswith((".yaml", ".yml")) or "=" in arguments[0]:
        raise ConfigError(
            f"launch: after the two dashes: expected a command such as train, found {arguments[0]}"
        )
    config, overrides = named_config(arguments)
    cfg = None if config is None else load_config(config, overrides)
    run_dir = None
    if max_restarts:
        arguments, run_dir = resumable(arguments, cfg)
    placement = start.placement_of(env, hosts, hostfile)
    pool = Pool(placement, nodes)
    if min_nodes is not None:
        if not max_restarts:
            raise ConfigError(f"--min-nodes {min_nodes}: add --max-restarts N")
        arguments, ranks = with_batch_ranks(arguments, pool.placement().size)
        pool = Pool(placement, nodes, min_nodes, can_share(cfg, ranks))
    if pool.has_spares and not max_restarts:
        raise ConfigError(f"--nodes {nodes}: the other hosts are spares: add --max-restarts N")

    def request() -> LaunchRequest:
        return start.launch_request(
            arguments,
            env,
            hosts=hosts,
            hostfile=hostfile,
            launcher=launcher,
            controller=controller,
            forward=forward or (),
            pool=pool,
        )

    def prepared() -> start.Job:
        comm = Comm() if cfg is None else cfg.comm
        by_horovod = comm.engine == "horovod" or (comm.engine == "auto" and horovod_installed())
        job = start.prepare(request(), env, comm.interface, horovod=by_horovod)
        _show(job, env)
        return job

    first = request()
    if first.needs_ssh and not dry_run:
        with doing(f"asking {len(first.placement.hosts)} hosts by ssh"):
            require_hosts(first.placement.hosts, HostQuery(config, overrides))
    if dry_run:
        prepared()
        return
    attempts = Attempts(prepared, pool, in_slurm=first.in_slurm)
    raise typer.Exit(supervised(attempts.start, max_restarts, run_dir))


def _show(job: start.Job, env: Mapping[str, str]) -> None:
    """Print where the ranks of an attempt run, and the launcher's command."""
    typer.echo(f"placement: {placement_text(job.request.placement)}")
    if nic := job.request.nic:
        typer.echo(f"network:   {nic.subnet} ({nic.name} here)")
    if names := kept_back(env):
        typer.echo(f"warning: not forwarded, named like secrets: {', '.join(names)}", err=True)
    for text in job.command.warnings:
        typer.echo(f"warning: {text}", err=True)
    typer.echo(f"command:   {shlex.join(job.command.words)}")


@launch_app.command("slurm")
def slurm(
    config: ConfigFile,
    overrides: Overrides = None,
    nodes: Annotated[int, typer.Option(min=1, help="Number of nodes.")] = 1,
    spares: Annotated[
        int, typer.Option(min=0, help="Nodes beyond these, for when one is lost or keeps failing.")
    ] = 0,
    min_nodes: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="M",
            help="Go on with fewer nodes, at least M and with the same global batch, where one is lost and "
            "no spare is left. Default: never with fewer.",
        ),
    ] = None,
    ranks_per_node: Annotated[
        int | None, typer.Option(min=1, help="Ranks of each node. Default: one per GPU.")
    ] = None,
    ranks: Annotated[
        int | None,
        typer.Option(
            min=1, help="Total number of ranks, for nodes with different numbers of GPUs."
        ),
    ] = None,
    gpus: Annotated[int, typer.Option(min=0, help="GPUs of each node. 0: train on CPUs.")] = 8,
    cores: Annotated[int, typer.Option(min=1, help="CPU cores of each rank.")] = 8,
    time: Annotated[str, typer.Option(help="Time limit of each attempt.")] = "1-00:00:00",
    partition: Annotated[str | None, typer.Option(help="Slurm partition.")] = None,
    launcher: Annotated[
        BatchLauncher, typer.Option(help="Program that starts the ranks.")
    ] = "srun",
    container: Annotated[
        Container | None, typer.Option(help="Run the ranks in containers.")
    ] = None,
    image: Annotated[str, typer.Option(help="File or name of the container image.")] = "",
    stage: Annotated[
        str | None,
        typer.Option(
            metavar="SRC", help="Packed dataset that each node first copies to its local disk."
        ),
    ] = None,
    sweep: Annotated[
        str | None,
        typer.Option(metavar="KEY=V,V…", help="Make a job array with one run for each value."),
    ] = None,
    environment: Annotated[
        str, typer.Option(metavar="FILE", help="Shell file to source so that hvdtrain is on PATH.")
    ] = ".venv/bin/activate",
) -> None:
    """Print a batch script for sbatch.

    At the time limit or at preemption the job writes a checkpoint and goes back into the queue.
    """
    cfg = load_config(config, overrides)
    sweep_overrides = sweep_settings(sweep)
    for setting in sweep_overrides:
        load_config(config, [*(overrides or []), setting])
    script = Script(
        name=cfg.name,
        config=config,
        overrides=overrides or [],
        nodes=nodes,
        spares=spares,
        min_nodes=min_nodes,
        ranks_per_node=ranks_per_node,
        total_ranks=ranks,
        gpus=gpus,
        cores_per_rank=cores,
        time=time,
        partition=partition,
        launcher=launcher,
        container=container,
        image=image,
        stage=stage,
        sweep=sweep_overrides,
        environment=environment,
    )
    typer.echo(render(script), nl=False)


@launch_app.command("store")
def store(
    ranks: Annotated[int, typer.Option(min=1, help="Number of ranks that will join.")],
    write: Annotated[
        Path, typer.Option(help="File for the environment variables that the ranks need.")
    ],
    interface: Annotated[
        str, typer.Option(help="Network between the hosts, like comm.interface.")
    ] = "auto",
) -> None:
    """Run the store through which ranks find each other.

    Only for batch scripts that start ranks in containers: hvdtrain launch has its own store. It
    ends when all ranks have joined.
    """
    start.keep_store(write, ranks, os.environ, interface)
