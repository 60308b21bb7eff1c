"""A valid file of every kind that hvdtrain reads, and how it reads each of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from hvdtrain.config.load import load_config
from hvdtrain.launch.allocation import slurm_placement
from hvdtrain.launch.hosts import parse_hosts, read_hostfile
from hvdtrain.launch.slurm_task import horovod_variables
from hvdtrain.scaling.calibration_file import read_calibration_file
from hvdtrain.scaling.compare import read_measured
from tests.unit.fuzz.data_seeds import datasets
from tests.unit.fuzz.inference_seeds import inference
from tests.unit.fuzz.reader import CONFIG, Reader, load_config_text
from tests.unit.fuzz.run_seeds import runs, weights

OVERRIDES = "phases.0.epochs=3\ndata.mean=[0.1, 0.2, 0.3]\nlr.base=1e-2\nname=x\nmodel.freeze=[stem, stages.0]"
SLURM = (
    "SLURM_JOB_ID=7\nSLURM_JOB_NODELIST=n[1-3,07],m\nSLURM_TASKS_PER_NODE=4(x4),1\n"
    "SLURM_CPUS_PER_TASK=2\nSLURM_GPUS_PER_NODE=a100:4"
)
TASK = (
    "SLURM_STEP_NUM_TASKS=4\nSLURM_NTASKS=4\nSLURM_STEP_TASKS_PER_NODE=2(x2)\nSLURM_NODEID=1\n"
    "SLURM_LOCALID=0\nSLURM_PROCID=2\nHVDTRAIN_RENDEZVOUS=127.0.0.1:99\nHVDTRAIN_RANKS=4"
)
ENTRY = {
    "image_size": 16,
    "batch": 4,
    "images_per_second": 9.5,
    "backward_s": 0.1,
    "release_s": [0.1],
}
CALIBRATION = {
    "model": "m",
    "precision": "fp32",
    "device": "cpu",
    "groups": [4.0],
    "entries": [ENTRY],
}
MEASURED = {
    "hosts": 2,
    "ranks_per_host": 1,
    "link_gbit": 10.0,
    "model": "m",
    "groups": [4.0],
    "release_s": [0.1],
    "compute_s": 0.2,
    "step_s": 0.3,
    "allreduce": [{"bytes": 8, "seconds": 0.1}, {"bytes": 16, "seconds": 0.2}],
}


def variables(file: Path) -> dict[str, str]:
    """The lines of `file` as an environment."""
    text = file.read_bytes().decode("utf-8", "surrogateescape").replace("\0", "")
    return dict(line.partition("=")[::2] for line in text.split("\n"))


def texts(root: Path) -> dict[str, Reader]:
    """Readers of what users write, or a cluster gives."""
    written = {
        "config": CONFIG.encode(),
        "overrides": OVERRIDES.encode(),
        "hosts": b"node1:4,node2:8,10.0.0.1",
        "hostfile": b"# hosts\nnode1 slots=4\nnode2:4\n\nnode3\n",
        "slurm job": SLURM.encode(),
        "slurm task": TASK.encode(),
        "calibration": json.dumps(CALIBRATION).encode(),
        "measured": json.dumps({"points": [MEASURED]}).encode(),
    }
    files = {name: root / f"{name.replace(' ', '-')}.txt" for name in written}
    for name, content in written.items():
        files[name].write_bytes(content)
    load_config_text(root, CONFIG)

    def overrides() -> object:
        text = files["overrides"].read_bytes().decode("utf-8", "surrogateescape")
        return load_config(root / "config.yaml", text.split("\n"))

    def hosts() -> object:
        return parse_hosts(files["hosts"].read_bytes().decode("utf-8", "surrogateescape"))

    def job() -> object:
        return slurm_placement({"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n", **variables(files["slurm job"])})  # fmt: skip

    reads: dict[str, Callable[[], object]] = {
        "config": lambda: load_config(files["config"]),
        "overrides": overrides,
        "hosts": hosts,
        "hostfile": lambda: read_hostfile(files["hostfile"]),
        "slurm job": job,
        "slurm task": lambda: horovod_variables(variables(files["slurm task"])),
        "calibration": lambda: read_calibration_file(files["calibration"], "metrics.calibration"),
        "measured": lambda: read_measured(files["measured"]),
    }
    return {name: Reader(files[name], read) for name, read in reads.items()}


def readers(root: Path) -> dict[str, Reader]:
    """Every reader with a valid file, in folders below `root`."""
    found: dict[str, Reader] = {}
    for make in (texts, datasets, weights, runs, inference):
        (root / make.__name__).mkdir()
        found |= make(root / make.__name__)
    return found
