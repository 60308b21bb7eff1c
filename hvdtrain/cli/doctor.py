"""`hvdtrain doctor`: check one machine, all ranks of a launcher, or hosts by ssh."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from hvdtrain.cli.job import AsJson, Overrides, job, load_on_all
from hvdtrain.cli.progress import doing
from hvdtrain.config.load import load_config
from hvdtrain.streams import say


def doctor(
    config: Annotated[
        str | None,
        typer.Argument(
            metavar="[CONFIG]",
            help="Config file (YAML); its datasets and disk are checked as well.",
        ),
    ] = None,
    overrides: Overrides = None,
    hosts: Annotated[
        str | None,
        typer.Option(
            metavar="A:4,B:4", help="Check these hosts by ssh: names, and number of ranks on each."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check this machine, all ranks, or several hosts.

    Without a launcher it checks this machine: versions, Horovod's features, MPI, image decoding,
    ports. Under mpirun, horovodrun or srun it also compares all ranks and measures the links
    between them. With --hosts it checks that ssh works and that all hosts have the same software
    and data. docs/reference/preflight.md lists all findings and how to fix them. The exit code is 1 if there
    is a fault.
    """
    if hosts is not None:
        from hvdtrain.launch.hosts import parse_hosts
        from hvdtrain.preflight.hosts import HostQuery, check_hosts, hosts_text

        if config is not None:
            load_config(config, overrides)  # its faults are shown once, not by every host
        named = parse_hosts(hosts)
        with doing(f"asking {len(named)} hosts by ssh"):
            on_hosts = check_hosts(named, HostQuery(config, overrides or []))
        typer.echo(json.dumps(on_hosts.as_dict()) if as_json else hosts_text(on_hosts))
        ok = on_hosts.ok
    else:
        with job(config, overrides) as comm:
            cfg = load_on_all(comm, config, overrides) if config is not None else None
            from hvdtrain.preflight.ranks import check_ranks, ranks_text

            report = check_ranks(cfg, comm)
            if comm.rank == 0:
                say(json.dumps(report.as_dict()) if as_json else ranks_text(report))
            ok = report.ok
    if not ok:
        raise typer.Exit(1)
