"""The hosts, slots, cores and GPUs of the Slurm job that a batch script runs in."""

from __future__ import annotations

import re
from collections.abc import Mapping

from hvdtrain.errors import ResourceError
from hvdtrain.launch.hosts import MOST_HOSTS, Host, shown
from hvdtrain.launch.placement import Placement, place
from hvdtrain.launch.slurm_task import tasks_per_node
from hvdtrain.launch.variables import SLURM_TASKS

INTERACTIVE_STEP = "4294967290"
"""Id of the job step in which `salloc` runs a shell on a node. Source: Slurm's
SLURM_INTERACTIVE_STEP."""


def in_allocation(env: Mapping[str, str]) -> bool:
    """True in a batch script or a shell of `salloc`; False in a task that srun started."""
    no_task = SLURM_TASKS not in env or env.get("SLURM_STEP_ID") == INTERACTIVE_STEP
    return "SLURM_JOB_ID" in env and no_task


def node_names(text: str, name: str = "SLURM_JOB_NODELIST") -> list[str]:
    """Expand the value of variable `name`: `n[1-3,07],m` → n1, n2, n3, n07, m. Raises ResourceError.

    The result is that of `scontrol show hostnames`.
    """
    names = [""]
    complete: list[str] = []
    for part in re.findall(r"\[[\d,-]+\]|[^\[\],]+|,", text):
        if part == ",":
            complete, names = [*complete, *names], [""]
        elif part.startswith("["):
            numbers = _numbers(part[1:-1], MOST_HOSTS // max(1, len(names)))
            names = [name + number for name in names for number in numbers]
        else:
            names = [name + part for name in names]
    complete += names
    if "" in complete or not complete:
        raise ResourceError(
            f"{name}: expected a list of at most {MOST_HOSTS:,} nodes such as n[1-4], "
            f"found '{shown(text)}'"
        )
    return complete


def _numbers(text: str, most: int) -> list[str]:
    """`1-3,07` → 1, 2, 3, 07; none if it is no such list, or would be longer than `most`."""
    numbers: list[str] = []
    for item in text.split(","):
        match = re.fullmatch(r"([0-9]{1,18})(?:-([0-9]{1,18}))?", item)
        if match is None:
            return []
        first, last = match[1], match[2] or match[1]
        span = range(int(first), int(last) + 1)
        if len(numbers) + len(span) > most:
            return []
        numbers += [str(number).zfill(len(first)) for number in span]
    return numbers


def slurm_placement(env: Mapping[str, str]) -> Placement:
    """Place the ranks as the job was allocated. Raises ResourceError or CommError."""
    names = node_names(env["SLURM_JOB_NODELIST"])
    if "SLURM_TASKS_PER_NODE" not in env:
        raise ResourceError(
            f"Slurm job {shown(env['SLURM_JOB_ID'])}: the number of tasks is not set: give sbatch --ntasks-per-node"
        )
    counts = tasks_per_node(env["SLURM_TASKS_PER_NODE"])
    if len(counts) != len(names):
        raise ResourceError(
            f"SLURM_TASKS_PER_NODE: counts of {len(counts)} nodes, SLURM_JOB_NODELIST names {len(names)}"
        )
    hosts = [Host(name, slots) for name, slots in zip(names, counts, strict=True)]
    cores: list[int | None] = [None] * len(hosts)
    if each := env.get("SLURM_CPUS_PER_TASK"):
        [number] = tasks_per_node(each, "SLURM_CPUS_PER_TASK")[:1]
        cores = [number * host.slots for host in hosts]
    elif "SLURM_JOB_CPUS_PER_NODE" in env:
        known = tasks_per_node(env["SLURM_JOB_CPUS_PER_NODE"], "SLURM_JOB_CPUS_PER_NODE")
        cores = [*known] if len(known) == len(hosts) else cores
    return place(hosts, cores, [_gpus(env)] * len(hosts))


def _gpus(env: Mapping[str, str]) -> int | None:
    """GPUs of each node; None unless the job asked for the same number on all."""
    match = re.search(r"([0-9]{1,9})$", env.get("SLURM_GPUS_PER_NODE", ""))  # for example a100:4
    return int(match[1]) if match else None
