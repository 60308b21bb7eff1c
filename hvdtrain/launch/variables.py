"""The environment variables that launchers set for the processes they start."""

from __future__ import annotations

from collections.abc import Mapping

HOROVOD_SIZE = "HOROVOD_SIZE"
MPI_SIZES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE")
"""Number of ranks that mpirun or srun --mpi started."""
SLURM_TASKS = "SLURM_STEP_NUM_TASKS"
"""Number of tasks of the job step. Only processes of srun have it; Slurm's other counts are also set
in batch scripts, which are one process."""
SIZES = (HOROVOD_SIZE, *MPI_SIZES, SLURM_TASKS)
"""Variables with the number of ranks, in order of precedence; torchrun's are told apart by `by_torchrun`."""
TORCH_SIZE = "WORLD_SIZE"
TORCH = (TORCH_SIZE, "RANK", "LOCAL_WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
"""What torchrun, and whatever starts ranks as it does, tells every rank."""
TORCHRUN = "TORCHELASTIC_RUN_ID"
"""Variable that torchrun alone sets."""
RANKS = ("HOROVOD_RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK", "SLURM_PROCID")
"""Variables with the number of this rank, in order of precedence."""
MPI_MARKS = (*MPI_SIZES, "PMIX_RANK")
"""If one of them is set, MPI has connected the ranks."""
LOCAL_SIZES = {
    "HOROVOD_LOCAL_SIZE": HOROVOD_SIZE,
    "OMPI_COMM_WORLD_LOCAL_SIZE": "OMPI_COMM_WORLD_SIZE",
}
"""Variable with the number of ranks on this host → variable with that of the whole job."""


def by_torchrun(env: Mapping[str, str]) -> bool:
    """True if torchrun started this process, or something that sets the same variables.

    torchrun may itself be a task of srun. One that mpirun or horovodrun has started is theirs.
    """
    theirs = any(name in env for name in (HOROVOD_SIZE, MPI_SIZES[0]))
    return all(env.get(name) for name in TORCH) and not theirs


def launched(env: Mapping[str, str]) -> bool:
    """True if a launcher started this process, even as the only one."""
    return by_torchrun(env) or any(name in env for name in SIZES)


def launched_size(env: Mapping[str, str]) -> int:
    """Number of ranks that the launcher says it started; 1 without a launcher."""
    names = (TORCH_SIZE,) if by_torchrun(env) else SIZES
    return next((int(env[name]) for name in names if env.get(name, "").isdigit()), 1)


def launched_rank(env: Mapping[str, str]) -> int:
    """This process's rank by the variables of its launcher; 0 without a launcher."""
    names = ("RANK",) if by_torchrun(env) else RANKS
    return next((int(env[name]) for name in names if env.get(name, "").isdigit()), 0)


def launcher_sizes(env: Mapping[str, str]) -> dict[str, int]:
    """All variables of launchers that give the number of ranks, with their values.

    Slurm's counts the tasks of this job step. Under mpirun these are its daemons, so Slurm's is left
    out, and with it the PMI_SIZE of that step. torchrun's stands alone, for the same reason.
    """
    if by_torchrun(env):
        return {TORCH_SIZE: launched_size(env)}
    mpi = MPI_SIZES[:1] if MPI_SIZES[0] in env else MPI_SIZES
    names = [name for name in (HOROVOD_SIZE, *mpi) if env.get(name, "").isdigit()]
    slurm = SLURM_TASKS if SLURM_TASKS in env else "SLURM_NTASKS"
    if "SLURM_STEP_ID" in env and MPI_SIZES[0] not in env and slurm in env:
        names.append(slurm)
    if TORCHRUN in env and TORCH_SIZE in env:
        names.append(TORCH_SIZE)
    return {name: int(env[name]) for name in names}


def on_one_host(env: Mapping[str, str]) -> bool:
    """True if the launcher's variables say that all ranks are on this host."""
    if by_torchrun(env):
        return env["LOCAL_WORLD_SIZE"] == env[TORCH_SIZE]
    if env.get("SLURM_NNODES", "").isdigit() and "SLURM_PROCID" in env:
        return env["SLURM_NNODES"] == "1"
    return any(here in env and env[here] == env.get(total) for here, total in LOCAL_SIZES.items())


def on_several_hosts(env: Mapping[str, str]) -> bool:
    """True if they say that other hosts have ranks.

    If no variable is set, both this and `on_one_host` are False.
    """
    if by_torchrun(env):
        return not on_one_host(env)
    nodes = env.get("SLURM_STEP_NUM_NODES", "")
    here = env.get("OMPI_COMM_WORLD_LOCAL_SIZE", "")
    return (here.isdigit() and int(here) < launched_size(env)) or (
        nodes.isdigit() and int(nodes) > 1
    )
