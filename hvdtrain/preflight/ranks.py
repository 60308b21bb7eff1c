"""Check all ranks of a job, and the machine of each: `hvdtrain doctor`, also under a launcher."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hvdtrain import activity
from hvdtrain.comm.ranks import Comm
from hvdtrain.config.schema import Config
from hvdtrain.preflight.facts import Facts
from hvdtrain.preflight.finding import Finding, as_dicts, faults_first, findings_text
from hvdtrain.preflight.judge import judge, measured
from hvdtrain.preflight.machine import Machine, examine, machine_text
from hvdtrain.preflight.sense import config_findings
from hvdtrain.preflight.survey import survey


@dataclass(frozen=True)
class RanksReport:
    """What was found on all ranks; equal on all of them, except `machine`."""

    machine: Machine | None
    """This rank's machine; None except on the first rank of each host."""
    facts: list[Facts]
    """Of every rank, in order."""
    findings: list[Finding]

    @property
    def ok(self) -> bool:
        """No fault on any rank or on this machine; warnings do not count."""
        sound = self.machine is None or not self.machine.faults
        return sound and not any(finding.is_fault for finding in self.findings)

    def as_dict(self) -> dict[str, Any]:
        """For `doctor --json` on rank 0."""
        machine = self.machine.as_dict() if self.machine is not None else {}
        ranks = [dataclasses.asdict(facts) for facts in self.facts]
        return {**machine, "ok": self.ok, "findings": as_dicts(self.findings), "ranks": ranks}


def check_ranks(cfg: Config | None, comm: Comm) -> RanksReport:
    """Examine every machine and compare all ranks; every rank must call.

    With a config, its datasets and the disk of its run directory are checked as well. Faults are
    in the report, not raised.
    """
    activity.enter("checking this machine")
    machine = examine() if comm.local_rank == 0 else None
    output = Path(cfg.output) if cfg is not None else Path()
    # `ranks_text` on rank 0 shows the checks of its own machine in full.
    faults = machine.faults if machine is not None and comm.rank > 0 else ()
    activity.enter("comparing the ranks, their links and datasets")
    facts = survey(cfg, comm, output, whole=True, own=tuple(faults))
    findings = judge(facts)
    if cfg is not None:
        findings = faults_first([*findings, *config_findings(cfg, facts)])
    return RanksReport(machine, facts, findings)


def ranks_text(report: RanksReport) -> str:
    """For rank 0: its machine, the findings, and what was measured between ranks."""
    lines = [machine_text(report.machine)] if report.machine is not None else []
    lines += findings_text(report.findings)
    return "\n".join([*lines, measured(report.facts)] if len(report.facts) > 1 else lines)
