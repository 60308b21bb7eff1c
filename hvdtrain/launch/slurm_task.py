"""Slurm's variables of a task that srun started, translated into Horovod's."""

from __future__ import annotations

import http.client
import re
import socket
from collections.abc import Mapping

from hvdtrain.errors import CommError
from hvdtrain.launch.hosts import MOST_HOSTS, MOST_SLOTS, Host, shown
from hvdtrain.launch.placement import Slot, place
from hvdtrain.launch.variables import HOROVOD_SIZE, MPI_MARKS, SLURM_TASKS

RENDEZVOUS = "HVDTRAIN_RENDEZVOUS"
"""Variable with ADDRESS:PORT of the store where ranks that srun started find each other."""
RANKS = "HVDTRAIN_RANKS"
"""Variable with the number of ranks for which the store was opened."""

NEEDED = ("SLURM_STEP_TASKS_PER_NODE", "SLURM_NODEID", "SLURM_LOCALID", "SLURM_PROCID")
"""What srun tells every task."""


def tasks_per_node(text: str, name: str = "SLURM_TASKS_PER_NODE") -> list[int]:
    """Expand the value of variable `name`: `4(x2),1` → [4, 4, 1]. Raises CommError."""
    counts: list[int] = []
    for item in text.split(","):
        match = re.fullmatch(r"([0-9]{1,9})(?:\(x([0-9]{1,5})\))?", item.strip())
        if match is None or not 0 < int(match[1]) <= MOST_SLOTS or len(counts) > MOST_HOSTS:
            raise CommError(f"{name}: expected counts such as 4(x2),1, found '{shown(text)}'")
        counts += [int(match[1])] * int(match[2] or 1)
    return counts


def horovod_variables(env: Mapping[str, str]) -> dict[str, str]:
    """The variables that Horovod's gloo controller needs in a task that srun started.

    Empty for any other process. Raises CommError if srun started several tasks that cannot find
    each other, or another number of tasks than the store was opened for.
    """
    # Not SLURM_NTASKS or SLURM_PROCID: batch scripts have these as well.
    tasks = _number(env, SLURM_TASKS) if SLURM_TASKS in env else 1
    where = f"task {shown(env.get('SLURM_PROCID', '?'))} on {socket.gethostname()}"
    if RENDEZVOUS not in env:
        connected = any(name in env for name in (*MPI_MARKS, HOROVOD_SIZE))
        if tasks > 1 and not connected:
            raise CommError(
                f"{where}: srun started {tasks} tasks that cannot find each other ({SLURM_TASKS}="
                f"{tasks}, no {RENDEZVOUS}), so each would train by itself: use hvdtrain launch -- "
                "train …, or srun --mpi=pmix"
            )
        return {}
    if SLURM_TASKS not in env:
        return {}
    if env.get(RANKS) != str(tasks):
        raise CommError(
            f"{where}: srun started {tasks} tasks, but the store was opened for "
            f"{shown(env.get(RANKS, '?'))} ranks: do not set the number of tasks, hvdtrain launch does it"
        )
    slot = slurm_slot(env)
    address, _, port = env[RENDEZVOUS].rpartition(":")
    if not address or not re.fullmatch("[0-9]{1,5}", port):
        raise CommError(f"{RENDEZVOUS}: expected ADDRESS:PORT, found '{shown(env[RENDEZVOUS])}'")
    return {
        "HOROVOD_CONTROLLER": "gloo",
        "HOROVOD_CPU_OPERATIONS": "gloo",
        "HOROVOD_GLOO_RENDEZVOUS_ADDR": address,
        "HOROVOD_GLOO_RENDEZVOUS_PORT": port,
        "HOROVOD_HOSTNAME": env.get("SLURMD_NODENAME", socket.gethostname()),
        "HOROVOD_RANK": env["SLURM_PROCID"],  # tasks may be assigned to nodes in turn
        "HOROVOD_SIZE": str(slot.size),
        "HOROVOD_LOCAL_RANK": str(slot.local_rank),
        "HOROVOD_LOCAL_SIZE": str(slot.local_size),
        "HOROVOD_CROSS_RANK": str(slot.cross_rank),
        "HOROVOD_CROSS_SIZE": str(slot.cross_size),
    }


def slurm_slot(env: Mapping[str, str]) -> Slot:
    """The place of a task that srun started. Raises CommError if its variables do not fit."""
    tasks = _number(env, SLURM_TASKS)
    for name in NEEDED:
        if not env.get(name):
            raise CommError(
                f"{name} is not set, but {SLURM_TASKS}={tasks} is: left over from another job? Unset "
                f"{SLURM_TASKS} and {RENDEZVOUS} to train in one process, or use hvdtrain launch -- train …"
            )
    counts = tasks_per_node(env[NEEDED[0]], NEEDED[0])
    if sum(counts) != tasks:
        where = f"task {shown(env['SLURM_PROCID'])} on {socket.gethostname()}"
        raise CommError(f"{where}: SLURM_STEP_TASKS_PER_NODE {counts} does not add up to {tasks}")
    for name, fewer in (("SLURM_NODEID", len(counts)), ("SLURM_LOCALID", max(counts))):
        if _number(env, name) >= fewer:
            raise CommError(f"{name}: expected a number below {fewer}, found {env[name]}")
    placed = place([Host(str(node), count) for node, count in enumerate(counts)])
    return placed.slot(int(env["SLURM_NODEID"]), int(env["SLURM_LOCALID"]))


def _number(env: Mapping[str, str], name: str) -> int:
    """Raises CommError unless the variable is a whole number."""
    if not re.fullmatch("[0-9]{1,9}", env[name]):
        raise CommError(f"{name}: expected a number, found '{shown(env[name])}'")
    return int(env[name])


def report_joined(env: Mapping[str, str]) -> None:
    """Report to the store that this rank has joined the others; it closes when all have."""
    if RENDEZVOUS not in env or SLURM_TASKS not in env:
        return
    address, _, port = env[RENDEZVOUS].rpartition(":")
    connection = http.client.HTTPConnection(address, int(port), timeout=10)
    try:
        connection.request("PUT", f"/joined/{env['SLURM_PROCID']}", body=b"1")
        connection.getresponse().read()
    except OSError:
        pass  # then the store stays open until the job ends
    finally:
        connection.close()
