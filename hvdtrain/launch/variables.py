"""What launchers tell the processes they start, by environment variables."""

from __future__ import annotations

from collections.abc import Mapping

HOROVOD_SIZE = "HOROVOD_SIZE"
MPI_SIZES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE")
"""Ranks that mpirun or srun --mpi started."""
SLURM_TASKS = "SLURM_STEP_NUM_TASKS"
"""Tasks of the job step, which only processes of srun have; Slurm's other counts are set in batch
scripts, too, where there is one process."""
SIZES = (HOROVOD_SIZE, *MPI_SIZES, SLURM_TASKS)
"""The number of ranks: the first that is set counts."""
MPI_MARKS = (*MPI_SIZES, "PMIX_RANK")
"""Any of them: MPI has connected the ranks."""
LOCAL_SIZES = {
    "HOROVOD_LOCAL_SIZE": HOROVOD_SIZE,
    "OMPI_COMM_WORLD_LOCAL_SIZE": "OMPI_COMM_WORLD_SIZE",
}
"""The number of ranks on this host, and beside it that of the job."""


def launched(env: Mapping[str, str]) -> bool:
    """True if a launcher started this process, be it the only one."""
    return any(name in env for name in SIZES)


def launched_size(env: Mapping[str, str]) -> int:
    """Ranks that the launcher says it started; 1 for a plain `python`."""
    return next((int(env[name]) for name in SIZES if env.get(name, "").isdigit()), 1)


def launcher_sizes(env: Mapping[str, str]) -> dict[str, int]:
    """All variables of launchers that give the number of ranks, with their values.

    Slurm's is the number of tasks of this step, unless these are the daemons of mpirun.
    """
    names = [name for name in (HOROVOD_SIZE, *MPI_SIZES) if env.get(name, "").isdigit()]
    slurm = SLURM_TASKS if SLURM_TASKS in env else "SLURM_NTASKS"
    if "SLURM_STEP_ID" in env and MPI_SIZES[0] not in env and slurm in env:
        names.append(slurm)
    if "TORCHELASTIC_RUN_ID" in env and "WORLD_SIZE" in env:
        names.append("WORLD_SIZE")
    return {name: int(env[name]) for name in names}


def on_one_host(env: Mapping[str, str]) -> bool:
    """True if the launcher's variables say that all ranks are on this host."""
    if env.get("SLURM_NNODES", "").isdigit() and "SLURM_PROCID" in env:
        return env["SLURM_NNODES"] == "1"
    return any(here in env and env[here] == env.get(total) for here, total in LOCAL_SIZES.items())


def on_several_hosts(env: Mapping[str, str]) -> bool:
    """True if they say that there are ranks on other hosts; both are False where nothing is said."""
    nodes = env.get("SLURM_STEP_NUM_NODES", "")
    here = env.get("OMPI_COMM_WORLD_LOCAL_SIZE", "")
    return (here.isdigit() and int(here) < launched_size(env)) or (
        nodes.isdigit() and int(nodes) > 1
    )
