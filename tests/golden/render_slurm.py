"""The batch scripts of slurm/ and some with unusual settings, and the options that generate them.

Update the files with `python -m tests.golden.render_slurm`, then check the diff.
"""

from __future__ import annotations

import contextlib
import io
from pathlib import Path

from hvdtrain.cli.launch import launch_app

ROOT = Path(__file__).parents[2]
IMAGENET = [
    "configs/imagenet_resnet50_goyal_32x8.yaml",
    "data.train=/data/imagenet/train",
    "data.val=/data/imagenet/val",
]

SCRIPTS = {
    "slurm/single_node.sbatch": IMAGENET,
    "slurm/multi_node.sbatch": [*IMAGENET, "--nodes", "4"],
    "slurm/multi_node_mpirun.sbatch": [*IMAGENET, "--nodes", "4", "--launcher", "mpirun"],
    "slurm/array.sbatch": [*IMAGENET, "--sweep", "lr.base=0.05,0.1,0.2"],
    "slurm/staging.sbatch": [*IMAGENET, "--nodes", "4", "--stage", "/data/imagenet-packed/train"],
    "slurm/unequal_gpus.sbatch": [*IMAGENET, "--ranks", "12"],
    "slurm/apptainer.sbatch": [
        *IMAGENET,
        *("--nodes", "4", "--container", "apptainer", "--image", "hvdtrain.sif"),
    ],
    "slurm/pyxis.sbatch": [
        *IMAGENET,
        *("--nodes", "4", "--container", "pyxis", "--image", "registry#hvdtrain:latest"),
    ],
    "tests/golden/slurm/cpu.sbatch": [
        *("configs/demo_digits.yaml", "data.train=a b/$x", "name=digits", "--gpus", "0"),
        *("--ranks-per-node", "2", "--cores", "1", "--time", "10", "--partition", "debug"),
        *("--environment", "my env.sh"),
    ],
    "tests/golden/slurm/lost_nodes.sbatch": [
        *("configs/demo_digits.yaml", "--nodes", "4", "--spares", "1", "--min-nodes", "2"),
    ],
    "tests/golden/slurm/staged_boxes.sbatch": [
        *("configs/demo_digits.yaml", "--gpus", "0", "--nodes", "2", "--container", "apptainer"),
        *("--image", "my image.sif", "--stage", "/data/a b"),
    ],
}


def rendered(options: list[str]) -> str:
    """The output of `hvdtrain launch slurm`."""
    text = io.StringIO()
    with contextlib.redirect_stdout(text):
        launch_app(["slurm", *options], standalone_mode=False)
    return text.getvalue()


if __name__ == "__main__":
    for name, options in SCRIPTS.items():
        (ROOT / name).write_text(rendered(options))
