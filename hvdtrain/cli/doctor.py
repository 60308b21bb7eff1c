"""`hvdtrain doctor`: one machine, all ranks of a launcher, or hosts by ssh."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hvdtrain.cli.job import AsJson, Overrides, job, load_on_all
from hvdtrain.config.load import load_config

if TYPE_CHECKING:
    from hvdtrain.comm.ranks import Comm
    from hvdtrain.config.schema import Config


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
        ok = _ask_hosts(hosts, config, overrides or [], as_json)
    else:
        with job(config, overrides) as comm:
            cfg = load_on_all(comm, config, overrides) if config is not None else None
            ok = _check_ranks(cfg, comm, as_json)
    if not ok:
        raise typer.Exit(1)


def _ask_hosts(hosts: str, config: str | None, overrides: list[str], as_json: bool) -> bool:
    from hvdtrain.launch.hosts import parse_hosts
    from hvdtrain.preflight.finding import as_dicts
    from hvdtrain.preflight.hosts import HostQuery, check_hosts, hosts_text

    if config is not None:
        load_config(config, overrides)  # its faults are told once, not by every host
    report = check_hosts(parse_hosts(hosts), HostQuery(config, overrides))
    if as_json:
        facts = {name: dataclasses.asdict(one) for name, one in report.facts.items()}
        found = as_dicts(report.findings)
        typer.echo(json.dumps({"ok": report.ok, "findings": found, "facts": facts}))
    else:
        typer.echo(hosts_text(report))
    return report.ok


def _check_ranks(cfg: Config | None, comm: Comm, as_json: bool) -> bool:
    from hvdtrain.preflight.finding import as_dicts, findings_text
    from hvdtrain.preflight.judge import judge, measured
    from hvdtrain.preflight.machine import examine, machine_text
    from hvdtrain.preflight.survey import survey

    machine: dict[str, Any] = examine() if comm.local_rank == 0 else {"checks": []}
    faults = [f"{one['name']}: {one['detail']}" for one in machine["checks"] if not one["ok"]]
    output = Path(cfg.output) if cfg is not None else Path()
    # Rank 0 prints its own machine's checks in full.
    own = () if comm.rank == 0 else tuple(faults)
    facts = survey(cfg, comm, output, whole=True, own=own)
    found = judge(facts)
    ok = not faults and not any(finding.kind for finding in found)
    if comm.rank == 0 and as_json:
        told = {"ok": ok, "findings": as_dicts(found)}
        typer.echo(json.dumps(machine | told | {"ranks": [dataclasses.asdict(f) for f in facts]}))
    elif comm.rank == 0:
        lines = [machine_text(machine), *findings_text(found)]
        typer.echo("\n".join([*lines, measured(facts)] if comm.size > 1 else lines))
    return ok
