"""`hvdtrain doctor`: one machine, all ranks of a launcher, or hosts by ssh."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from hvdtrain.cli.job import AsJson, Overrides, job, load_on_all
from hvdtrain.config.load import load_config


def doctor(
    config: Annotated[
        str | None,
        typer.Argument(metavar="[CONFIG]", help="YAML file of a run: its data and disk, too."),
    ] = None,
    overrides: Overrides = None,
    hosts: Annotated[
        str | None,
        typer.Option(metavar="A:4,B:4", help="Ask these hosts by ssh: names and ranks on each."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check this machine, all ranks, or hosts, before a run does.

    WorkerSpeed: versions, Horovod's features, MPI, image decoding, ports. Under mpirun, horovodrun or
    srun: also whether all ranks fit together, and the links between them. With --hosts: whether
    ssh gets in, and all hosts have the same. docs/reference/preflight.md lists every finding with its
    fix. Exit code 1: a fault was found.
    """
    if hosts is not None:
        from hvdtrain.launch.hosts import parse_hosts
        from hvdtrain.preflight.hosts import HostQuery, check_hosts, hosts_text

        if config is not None:
            load_config(config, overrides)  # its faults are shown once, not by every host
        on_hosts = check_hosts(parse_hosts(hosts), HostQuery(config, overrides or []))
        typer.echo(json.dumps(on_hosts.as_dict()) if as_json else hosts_text(on_hosts))
        ok = on_hosts.ok
    else:
        with job(config, overrides) as comm:
            cfg = load_on_all(comm, config, overrides) if config is not None else None
            from hvdtrain.preflight.ranks import check_ranks, ranks_text

            report = check_ranks(cfg, comm)
            if comm.rank == 0:
                typer.echo(json.dumps(report.as_dict()) if as_json else ranks_text(report))
            ok = report.ok
    if not ok:
        raise typer.Exit(1)
