"""Batch scripts for Slurm, made of a few parts; those in `slurm/` are made here as well.

The texts are meant to be read and edited by users.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from hvdtrain.errors import ConfigError
from hvdtrain.launch.commands import LATE_S

RESTARTS = 3
"""Restarts after a crash within one attempt of the job."""
SIGNAL_S = 180
"""Seconds before the time limit when Slurm signals the job to stop."""


@dataclass(frozen=True)
class Script:
    """The settings of a batch script."""

    name: str
    config: str
    overrides: Sequence[str] = ()
    nodes: int = 1
    spares: int = 0
    """Nodes beyond `nodes`, which take the place of lost ones."""
    min_nodes: int | None = None
    """With how many nodes at least the job goes on where no spare is left; None: with `nodes`."""
    ranks_per_node: int | None = None
    """None: one per GPU, or one without GPUs."""
    total_ranks: int | None = None
    """Replaces nodes × ranks per node: Slurm chooses nodes with free GPUs."""
    gpus: int = 0
    """GPUs of each node; every rank uses one. 0: train on CPUs."""
    cores_per_rank: int = 8
    time: str = "1-00:00:00"
    partition: str | None = None
    launcher: Literal["srun", "mpirun"] = "srun"
    container: Literal["apptainer", "pyxis"] | None = None
    image: str = ""
    stage: str | None = None
    """A packed dataset that each node first copies to its own disk."""
    sweep: Sequence[str] = ()
    """The overrides of each task of a job array, with blanks between them."""
    runs: Sequence[str] = ()
    """The run directory of each task; none: one by the numbers of job and task."""
    environment: str = ".venv/bin/activate"
    """Shell file to source: it puts hvdtrain on PATH. Not used with a container."""

    @property
    def local_size(self) -> int:
        """Ranks of each node."""
        return self.ranks_per_node or self.gpus or 1


def sweep_settings(text: str | None) -> list[str]:
    """Split `lr.base=1,2` into overrides, one for each task of a job array. Raises ConfigError."""
    if text is None:
        return []
    key, _, values = text.partition("=")
    if not values:
        raise ConfigError(f"--sweep {text}: expected KEY=VALUE,VALUE…")
    return [f"{key}={value}" for value in values.split(",")]


def render(script: Script) -> str:
    """The text of the script. Raises ConfigError if its settings cannot be combined."""
    if script.container is not None and script.launcher == "mpirun":
        raise ConfigError(
            "--container: mpirun cannot start ranks in a container: use --launcher srun"
        )
    if script.container is not None and not script.image:
        raise ConfigError("--container: give --image, the container's file or name")
    if script.spares and (script.container is not None or script.total_ranks is not None):
        raise ConfigError("--spares: not with --container or --ranks: give --nodes")
    if script.min_nodes is not None:
        if script.container is not None or script.total_ranks is not None:
            raise ConfigError("--min-nodes: not with --container or --ranks: give --nodes")
        if script.min_nodes >= script.nodes:
            raise ConfigError(
                f"--min-nodes {script.min_nodes}: expected fewer than the {script.nodes} of --nodes"
            )
    for text in (script.name, script.time, script.partition or "", script.image, script.config):
        if "\n" in text:
            raise ConfigError(f"a setting of a batch script must be one line, found {text!r}")
    parts = [_header(script), _settings(script), _FINISH, _stage(script), _start(script), _END]
    return "\n".join(part for part in parts if part)


def _header(script: Script) -> str:
    options = [f"--job-name={script.name}"]
    if script.partition is not None:
        options.append(f"--partition={script.partition}")
    if script.total_ranks is not None:
        options.append(f"--ntasks={script.total_ranks}")
    else:
        nodes = script.nodes + script.spares
        options += [f"--nodes={nodes}", f"--ntasks-per-node={script.local_size}"]
    options.append(f"--cpus-per-task={script.cores_per_rank}")
    if script.gpus:
        by_node = script.total_ranks is None
        options.append(f"--gpus-per-node={script.local_size}" if by_node else "--gpus-per-task=1")
    options.append(f"--time={script.time}")
    if script.sweep:
        options.append(f"--array=0-{len(script.sweep) - 1}")
    log = "%A-%a" if script.sweep else "%j"
    options += [f"--output=%x-{log}.log", "--open-mode=append", "--requeue"]
    if script.spares or script.min_nodes is not None:
        options.append("--no-kill")
    options.append(f"--signal=B:USR1@{SIGNAL_S}")
    lines = ["#!/bin/bash", *(f"#SBATCH {_option(option)}" for option in options), ""]
    return "\n".join([*lines, *(f"# {line}" for line in _about(script)), "set -u", ""])


def _about(script: Script) -> list[str]:
    by = {
        "srun": "Ranks are started by srun and find each other without ssh or MPI.",
        "mpirun": "Ranks are started by Open MPI's mpirun, which starts its daemons by srun.",
    }[script.launcher]
    return [
        by,
        "Slurm sends SIGUSR1 before the time limit and SIGTERM at preemption: the ranks write a",
        "checkpoint, and the job goes back into the queue and on from there.",
    ]


def _settings(script: Script) -> str:
    lines = []
    if script.container is None:
        lines.append(f". {shlex.quote(script.environment)}")
    else:
        lines += [f"image={shlex.quote(script.image)}", *_box(script)]
    if script.total_ranks is not None and script.gpus:
        lines.append("export SLURM_GPU_BIND=none  # every rank sees all GPUs of its node")
    lines.append(f"config={shlex.quote(script.config)}")
    overrides = " ".join(map(shlex.quote, script.overrides))
    lines.append(f"settings=({overrides})")
    run = "runs/$SLURM_JOB_NAME-$SLURM_JOB_ID"
    if script.sweep:
        lines += ["sweep=(", *(f"    {shlex.quote(text)}" for text in script.sweep), ")"]
        several = bool(script.runs)  # words of their own; a single one may have blanks in it
        entry = "${sweep[$SLURM_ARRAY_TASK_ID]}"
        lines.append(f"settings+=({entry})" if several else f'settings+=("{entry}")')
        run = "runs/$SLURM_JOB_NAME-$SLURM_ARRAY_JOB_ID-$SLURM_ARRAY_TASK_ID"
    if script.runs:
        lines += ["runs=(", *(f"    {shlex.quote(text)}" for text in script.runs), ")"]
        run = "${runs[$SLURM_ARRAY_TASK_ID]}"
    lines.append(f'run="{run}"  # the same after each requeue')
    return "\n".join([*lines, ""])


def _stage(script: Script) -> str:
    if script.stage is None:
        return ""
    return f"""\
# Each node copies the dataset to its own disk, checked; what is there already is kept.
dataset={shlex.quote(script.stage)}
copy="${{TMPDIR:-/tmp}}/hvdtrain-$(id -un)/$(basename "$dataset")"
{_srun(script)} --nodes="$SLURM_JOB_NUM_NODES" --ntasks="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 \\
    {_inside(script)}hvdtrain data stage "$dataset" "$copy" || finish $?
[ -z "$told" ] || finish 143
settings+=("data.train=$copy")
"""


def _start(script: Script) -> str:
    train = 'train "$config" "${settings[@]}" --run-dir "$run" --resume auto &'
    if script.container is None:
        launcher = " --launcher mpirun" if script.launcher == "mpirun" else ""
        spares = f" --nodes {script.nodes}" if script.spares else ""
        least = "" if script.min_nodes is None else f" --min-nodes {script.min_nodes}"
        options = f"{launcher}{spares}{least} --max-restarts {RESTARTS}"
        return f"hvdtrain launch{options} -- \\\n    {train}"
    return f"""\
# The ranks find each other through a store on this node; it closes when all have.
store=$(mktemp ./.store-XXXXXX)
trap 'rm -f "$store"' EXIT
{_srun(script)} --overlap --nodes=1 --ntasks=1 --nodelist="$SLURMD_NODENAME" \\
    {_inside(script)}hvdtrain launch store --ranks "$SLURM_NTASKS" --write "$store" &
until [ -s "$store" ]; do kill -0 $! || finish 5; sleep 0.2; done
set -a; . "$store"; set +a
{_srun(script)} --ntasks="$SLURM_NTASKS" --wait={LATE_S} \\
    {_inside(script)}hvdtrain {train}"""


def _box(script: Script) -> list[str]:
    """The shell array `box`, which runs a command in the container."""
    if script.container == "apptainer":
        gpus = "--nv " if script.gpus else ""
        return [
            f'box=(apptainer exec {gpus}"$image")  # --bind DIR: where the images are, if not below $HOME'
        ]
    mounts = '--container-mounts="$PWD,${TMPDIR:-/tmp}"'
    options = f'--container-image="$image" --container-workdir="$PWD" {mounts}'
    return [f"box=({options})  # and where the images are"]


def _srun(script: Script) -> str:
    return 'srun "${box[@]}"' if script.container == "pyxis" else "srun"


def _inside(script: Script) -> str:
    return '"${box[@]}" ' if script.container == "apptainer" else ""


def _option(text: str) -> str:
    name, _, value = text.partition("=")
    return f"{name}={shlex.quote(value)}" if value else name


_FINISH = """\
# 75: stopped after a checkpoint; 138 and 143: killed by the signal before there was one to write.
# Who cancels a job does not want it back: its state is no longer RUNNING.
finish() {
    case $1 in
    75 | 138 | 143)
        if scontrol show job --oneliner "$SLURM_JOB_ID" | grep -q ' JobState=RUNNING '; then
            scontrol requeue "$SLURM_JOB_ID"
        fi
        ;;
    esac
    exit "$1"
}
told=
trap 'told=yes; kill -USR1 $(jobs -p) 2>/dev/null' USR1 TERM
"""

_END = """\
training=$!
wait "$training"
code=$?
while [ "$told" ] && [ "$code" -gt 128 ]; do  # a trapped signal ended `wait` early
    told=
    wait "$training"
    code=$?
done
finish "$code"
"""
