"""`hvdtrain launch`: parse, call, print."""

from __future__ import annotations

import contextlib
import os
import shlex
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

import typer
from typer.core import TyperGroup

from hvdtrain.cli.job import ConfigFile, Overrides
from hvdtrain.config.load import load_config
from hvdtrain.errors import ConfigError
from hvdtrain.files import write_atomically
from hvdtrain.launch import commands
from hvdtrain.launch.allocation import in_allocation, node_names, slurm_placement
from hvdtrain.launch.forwarding import forwarded, kept_back
from hvdtrain.launch.hosts import Host, parse_hosts, read_hostfile
from hvdtrain.launch.job import own_command, run_job
from hvdtrain.launch.nic import Nic, choose
from hvdtrain.launch.placement import Placement, place, placement_text
from hvdtrain.launch.sbatch import Script, render
from hvdtrain.launch.slurm_task import RANKS, RENDEZVOUS
from hvdtrain.preflight.hosts import HostQuery, require_hosts

Launcher = Literal["auto", "mpirun", "horovodrun", "srun"]
Controller = Literal["mpi", "gloo"]
BatchLauncher = Literal["srun", "mpirun"]
Container = Literal["apptainer", "pyxis"]


class _Group(TyperGroup):
    """`hvdtrain launch OPTIONS -- train …` is `hvdtrain launch run OPTIONS -- train …`."""

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:  # type: ignore[override]
        if args and args[0] not in (*self.commands, "--help"):
            args = ["run", *args]
        return super().parse_args(ctx, args)


launch_app = typer.Typer(
    cls=_Group,
    help="Start ranks on several machines: hvdtrain launch --hosts a:4,b:4 -- train CONFIG.",
    no_args_is_help=True,
)


@launch_app.command("run")
def run(
    arguments: Annotated[
        list[str], typer.Argument(metavar="-- train CONFIG …", help="What every rank runs.")
    ],
    hosts: Annotated[
        str | None, typer.Option(help="Machines and ranks on each: a:4,b:4. In Slurm: the job's.")
    ] = None,
    hostfile: Annotated[Path | None, typer.Option(help="The same from a file.")] = None,
    launcher: Annotated[
        Launcher, typer.Option(help="auto: srun in a Slurm job, else mpirun.")
    ] = "auto",
    controller: Annotated[
        Controller | None,
        typer.Option(help="How ranks find each other. Default: gloo with srun, else mpi."),
    ] = None,
    forward: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="One more environment variable.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show placement and command; start nothing.")
    ] = False,
) -> None:
    """Place the ranks, choose the launcher, show its command, and run it."""
    env = dict(os.environ)
    in_slurm = in_allocation(env) and hosts is None and hostfile is None
    placement = slurm_placement(env) if in_slurm else place(_hosts(hosts, hostfile))
    if launcher == "auto":
        launcher = "srun" if in_slurm else "mpirun"
    if launcher == "srun" and not in_slurm:
        raise ConfigError(
            "--launcher srun: works in a Slurm job without --hosts: see sbatch, salloc"
        )
    controller = controller or ("gloo" if launcher == "srun" else "mpi")
    remote = not _all_here(placement)
    if remote and not (in_slurm or dry_run):
        require_hosts(placement.hosts, HostQuery(*_config(arguments)))
    nic = _nic(placement, arguments)
    request = commands.LaunchRequest(
        placement,
        (*own_command(), *arguments),
        tuple(forwarded(env, forward or ())),
        nic.subnet if nic is not None and remote else None,
        nic.name if nic is not None and remote else None,
        remote,
        in_slurm,
    )
    command = _command(request, launcher, controller)
    typer.echo(f"placement: {placement_text(placement)}")
    if nic is not None:
        typer.echo(f"network:   {nic.subnet} ({nic.name} here)")
    if names := kept_back(env):
        typer.echo(f"warning: not forwarded, named like secrets: {', '.join(names)}", err=True)
    for text in command.warnings:
        typer.echo(f"warning: {text}", err=True)
    typer.echo(f"command:   {shlex.join(command.words)}")
    if dry_run:
        return
    raise typer.Exit(_start(command, request, launcher, controller, nic, env))


@launch_app.command("slurm")
def slurm(
    config: ConfigFile,
    overrides: Overrides = None,
    nodes: Annotated[int, typer.Option(min=1, help="Number of machines.")] = 1,
    ranks_per_node: Annotated[
        int | None, typer.Option(min=1, help="Default: one per GPU, else one.")
    ] = None,
    ranks: Annotated[
        int | None,
        typer.Option(min=1, help="Of all nodes, where they have unequal numbers of GPUs."),
    ] = None,
    gpus: Annotated[int, typer.Option(min=0, help="GPUs of each node; 0: train on CPUs.")] = 8,
    cores: Annotated[int, typer.Option(min=1, help="CPU cores of each rank.")] = 8,
    time: Annotated[str, typer.Option(help="Time limit of one attempt.")] = "1-00:00:00",
    partition: Annotated[str | None, typer.Option(help="Slurm's partition.")] = None,
    launcher: Annotated[BatchLauncher, typer.Option(help="What starts the ranks.")] = "srun",
    container: Annotated[Container | None, typer.Option(help="Run in containers.")] = None,
    image: Annotated[str, typer.Option(help="The container's file or name.")] = "",
    stage: Annotated[
        str | None, typer.Option(metavar="SRC", help="Packed dataset to copy to each node's disk.")
    ] = None,
    sweep: Annotated[
        str | None, typer.Option(metavar="KEY=V,V…", help="An array: one run for each value.")
    ] = None,
    environment: Annotated[
        str, typer.Option(metavar="FILE", help="Shell file to source: it makes hvdtrain known.")
    ] = ".venv/bin/activate",
) -> None:
    """Print a batch script for `sbatch`: checkpoint and requeue at a time limit or preemption."""
    cfg = load_config(config, overrides)
    key, _, values = (sweep or "").partition("=")
    if sweep is not None and not values:
        raise ConfigError(f"--sweep {sweep}: expected KEY=VALUE,VALUE…")
    settings = [f"{key}={value}" for value in values.split(",")] if sweep else []
    for setting in settings:
        load_config(config, [*(overrides or []), setting])
    script = Script(
        name=cfg.name,
        config=config,
        overrides=overrides or [],
        nodes=nodes,
        ranks_per_node=ranks_per_node or gpus or 1,
        total_ranks=ranks,
        gpus=gpus > 0,
        cores_per_rank=cores,
        time=time,
        partition=partition,
        launcher=launcher,
        container=container,
        image=image,
        stage=stage,
        sweep=settings,
        environment=environment,
    )
    typer.echo(render(script), nl=False)


@launch_app.command("store")
def store(
    ranks: Annotated[int, typer.Option(min=1, help="Number of ranks that will join.")],
    write: Annotated[Path, typer.Option(help="File for the variables that ranks need.")],
    interface: Annotated[
        str, typer.Option(help="Network between the machines, as comm.interface.")
    ] = "auto",
) -> None:
    """Keep the store where ranks that srun starts find each other, until all have.

    `hvdtrain launch` does it itself; this is for ranks that a batch script starts in containers.
    """
    from hvdtrain.launch.rendezvous import rendezvous

    nodes = node_names(os.environ.get("SLURM_JOB_NODELIST", "localhost"))
    several = len(nodes) > 1 or interface != "auto"
    address = choose(interface, nodes).address if several else "127.0.0.1"
    with rendezvous(address, ranks) as server:
        text = f"{RENDEZVOUS}={address}:{server.server_port}\n{RANKS}={ranks}\n"
        write_atomically(write, text.encode())
        server.all_joined.wait()


def _hosts(hosts: str | None, hostfile: Path | None) -> list[Host]:
    if (hosts is None) == (hostfile is None):
        raise ConfigError(
            "launch: give --hosts a:4,b:4 or --hostfile FILE, or run it in a Slurm job"
        )
    return parse_hosts(hosts) if hosts is not None else read_hostfile(hostfile or Path())


def _all_here(placement: Placement) -> bool:
    here = ("localhost", "127.0.0.1", socket.gethostname(), os.environ.get("SLURMD_NODENAME"))
    return len(placement.hosts) == 1 and placement.hosts[0].name in here


def _nic(placement: Placement, arguments: list[str]) -> Nic | None:
    """The network between the hosts, by the config's `comm.interface` or the route to them."""
    interface = _interface(arguments)
    if _all_here(placement) and interface == "auto":
        return None
    return choose(interface, [host.name for host in placement.hosts])


def _interface(arguments: list[str]) -> str:
    """`comm.interface` of the config that is named in the command line, if there is one."""
    config, overrides = _config(arguments)
    return load_config(config, overrides).comm.interface if config is not None else "auto"


def _config(arguments: list[str]) -> tuple[str | None, list[str]]:
    """The config that is named in the command line, and what overrides its values."""
    config = next((word for word in arguments[1:] if word.endswith((".yaml", ".yml"))), None)
    return config, [word for word in arguments if "=" in word and not word.startswith("-")]


def _command(
    request: commands.LaunchRequest, launcher: Launcher, controller: Controller
) -> commands.Command:
    if launcher == "srun":
        return commands.srun(request, controller)
    if launcher == "horovodrun":
        version = commands.open_mpi_version() if controller == "mpi" else ()
        return commands.horovodrun(request, controller, version, commands.mpi_prefix())
    if controller == "gloo":
        raise ConfigError("--controller gloo: not with mpirun: take --launcher srun or horovodrun")
    return commands.mpirun(request, commands.open_mpi_version(), commands.mpi_prefix())


def _start(
    command: commands.Command,
    request: commands.LaunchRequest,
    launcher: Launcher,
    controller: Controller,
    nic: Nic | None,
    env: Mapping[str, str],
) -> int:
    placement = request.placement
    if launcher == "horovodrun":  # it forwards all it has, by value, on ssh's command line
        kept = {"HOME", "USER", "LANG", "LC_ALL", "SSH_AUTH_SOCK", "OMPI_ALLOW_RUN_AS_ROOT"}
        kept |= {"OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", *request.names}
        env = {name: value for name, value in env.items() if name in kept}
    with contextlib.ExitStack() as stack:
        if launcher == "srun" and controller == "gloo" and placement.size > 1:
            from hvdtrain.launch.rendezvous import rendezvous

            address = nic.address if nic is not None else "127.0.0.1"
            store = stack.enter_context(rendezvous(address, placement.size))
            where = f"{address}:{store.server_port}"
            env = {**env, RENDEZVOUS: where, RANKS: str(placement.size)}
        return run_job(command.words, env, command.checkpoint_signal)
