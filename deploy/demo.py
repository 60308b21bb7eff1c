"""`make demo`: writes the digits as JPEG files, and trains on them with two Horovod workers."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

WORKERS = 2
DATA = Path("data/digits")
BIN = Path(sys.prefix, "bin")

NEXT = """
What to try next (after `source .venv/bin/activate`):
  hvdtrain plan configs/imagenet_resnet50_goyal_32x8.yaml --world-size 256    plan a run on 256 GPUs
  hvdtrain doctor                                                             check this machine
  hvdtrain train configs/finetune_small.yaml data.train=DIR                   train on your own JPEGs
"""


def worker_environment() -> dict[str, str]:
    """The environment of two workers on one machine."""
    env = dict(os.environ)
    env["PATH"] = f"{BIN}{os.pathsep}{env['PATH']}"
    env.setdefault(
        "OMPI_MCA_mpi_yield_when_idle", "1"
    )  # a busy wait takes time from the rank that computes
    if os.getuid() == 0:
        env["OMPI_ALLOW_RUN_AS_ROOT"] = env["OMPI_ALLOW_RUN_AS_ROOT_CONFIRM"] = "1"
    # mpirun gives its workers a pseudo-terminal without a size, even if its output is a file.
    env.setdefault("TTY_COMPATIBLE", str(int(sys.stdout.isatty())))
    env.setdefault("COLUMNS", str(shutil.get_terminal_size().columns))
    return env


def main() -> int:
    if not DATA.exists():
        print(f"writing scikit-learn's handwritten digits as JPEG files to {DATA}", flush=True)
    subprocess.run(
        [sys.executable, str(Path(__file__).with_name("digits.py")), str(DATA)], check=True
    )
    launch = ["horovodrun", "-np", str(WORKERS), "--mpi"]
    launch += [
        "--mpi-args=--mca orte_tag_output 0"
    ]  # `[1,0]<stdout>:` would break the progress bar
    train = ["hvdtrain", "train", "configs/demo_digits.yaml"]
    command = [*launch, *train, f"data.train={DATA}/train", f"data.val={DATA}/val"]
    print(f"training with {WORKERS} workers: {' '.join(train)}", flush=True)
    code = subprocess.run(command, env=worker_environment(), check=False).returncode
    if code == 0:
        print(NEXT)
    return code


if __name__ == "__main__":
    sys.exit(main())
