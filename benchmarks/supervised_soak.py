"""What grows over many restarts by `hvdtrain launch --max-restarts`: memory, handles, files, disk.

A small run on several ranks, one of which is killed after so many updates of each attempt. Whenever an attempt has
begun, the launcher's process, the run directory, TMPDIR and /dev/shm are looked at.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
from common import free_port, print_growth, print_machine, print_result
from restarts_soak import PER_EPOCH, files_and_bytes, make_images

from hvdtrain.paths import RunPaths

CONFIG = """
name: soak
data: {{train: {root}/train, val: {root}/val, augment: pad_crop, decode_threads: 1}}
model: {{name: resnet8_cifar}}
lr: {{base: 0.01, warmup: none, schedule: constant}}
phases: [{{epochs: {epochs}, image_size: 16, batch_per_worker: {batch}}}]
train: {{compute_threads: 1, evaluate_every: 1000}}
checkpoint: {{every_steps: 10}}
comm: {{preflight: false}}
metrics: {{port: {port}}}
"""
KILLS = """
import os, signal
if os.environ.get("OMPI_COMM_WORLD_RANK") == os.environ["SOAK_RANK"]:
    import hvdtrain.train as loop
    step, done = loop.train_step, [0]
    def counted(*args, **options):
        done[0] += 1
        if done[0] > int(os.environ["SOAK_EVERY"]):
            os.kill(os.getpid(), signal.SIGKILL)
        return step(*args, **options)
    loop.train_step = counted
from hvdtrain.cli.main import main
main()
"""
"""In place of the program `hvdtrain` of a rank."""


def look(job: psutil.Process, root: Path, run_dir: Path) -> dict[str, float]:
    """The figures now."""
    files, size = files_and_bytes(run_dir, but="events.jsonl")
    shared = [path for path in Path("/dev/shm").iterdir() if path.name.startswith("hvdtrain")]
    return {
        "files of the run": files,
        "MB of the run": size / 1e6,
        "files in TMPDIR": len(list((root / "tmp").iterdir())),
        "folders in /dev/shm": len(shared),
        "memory of the launcher, MB": job.memory_info().rss / 1e6,
        "open files of the launcher": job.num_fds(),
        "threads of the launcher": job.num_threads(),
    }


def starts(events: Path) -> tuple[int, int]:
    """Attempts so far, and the last update that was reported."""
    found, step = 0, 0
    if events.exists():
        for line in events.read_text().splitlines():
            found += '"kind": "start"' in line
            if '"kind": "train"' in line:
                step = json.loads(line)["step"]
    return found, step


def main() -> None:
    """Parse the arguments, run and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--restarts", type=int, default=200)
    parser.add_argument("--every", type=int, default=50, help="updates of an attempt")
    parser.add_argument("--ranks", type=int, default=2)
    args = parser.parse_args()

    began = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="hvdtrain-soak-") as folder:
        root = Path(folder)
        make_images(root)
        (root / "tmp").mkdir()
        epochs = 2 + 2 * (args.restarts + 1) * args.every // PER_EPOCH
        batch = max(1, 4 // args.ranks)
        text = CONFIG.format(root=root, epochs=epochs, batch=batch, port=free_port())
        (root / "soak.yaml").write_text(text)
        (root / "rank.py").write_text(KILLS)
        env = {**os.environ, "TMPDIR": str(root / "tmp"), "SOAK_EVERY": str(args.every)}
        env |= {"SOAK_RANK": str(args.ranks - 1), "PYTHONPATH": str(root)}
        launcher = (
            "import hvdtrain.launch.start as start; from hvdtrain.cli.main import main; "
            f"start.own_command = lambda: [{sys.executable!r}, {str(root / 'rank.py')!r}]; main()"
        )
        options = ["--hosts", f"localhost:{args.ranks}", "--max-restarts", "3"]
        options += ["--forward", "SOAK_EVERY", "--forward", "SOAK_RANK", "--forward", "TMPDIR"]
        command = [sys.executable, "-c", launcher, "launch", *options, "--", "train"]
        run_dir = root / "run"
        figures, step = [], 0
        with (
            (root / "log").open("w") as log,
            subprocess.Popen(
                [*command, str(root / "soak.yaml"), "--run-dir", str(run_dir)],
                env=env,
                stdout=log,
                stderr=log,
            ) as job,
        ):
            process = psutil.Process(job.pid)
            while len(figures) <= args.restarts:
                time.sleep(0.1)
                assert job.poll() is None, (root / "log").read_text()[-3000:]
                attempts, step = starts(RunPaths(run_dir).events)
                if attempts > len(figures):
                    figures.append(look(process, root, run_dir))
            job.terminate()
            job.wait()
    seconds = time.perf_counter() - began
    print(f"{step:,} updates, {len(figures) - 1} restarts, {seconds:.0f} s")
    print_machine()
    result = print_growth(figures)
    print_result({"updates": step, "restarts": len(figures) - 1, "seconds": seconds, **result})


if __name__ == "__main__":
    main()
