"""hvdtrain on two ranks against torch's DistributedDataParallel (DDP): images per second.

Both train ResNet-18 on the CPUs of this machine, with one thread per rank. Each rank trains on 64
images of 64 px per step, which are in memory. mpirun starts hvdtrain, which exchanges gradients
with Horovod over MPI and does all the work of a real run (reports, metrics). torchrun starts
hvdtrain once more, whose torch engine exchanges them with gloo, and DDP with the gloo backend,
which runs a bare loop: forward, loss, backward, update.

There are six jobs: the trainers in fp32 and in bf16, all channels_last. They take turns, and
every turn starts new processes. The results are the medians over rounds of hvdtrain's images/s
divided by DDP's, with each engine.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import torch
from common import (
    free_port,
    in_turn,
    median_ratio,
    memory_run,
    print_machine,
    print_result,
    print_table,
    random_batch,
    timed_epoch,
)
from torch.nn import functional

from hvdtrain.comm.start import init_comm
from hvdtrain.config.load import parse_config
from hvdtrain.config.schema import Config
from hvdtrain.engine.build import choose_device
from hvdtrain.models import build_model
from hvdtrain.run.efficiency import Efficiency
from pipelines.loader import Batch

RANKS = 2
CONFIG = """
name: ddp
model: {{name: resnet18, num_classes: 1000}}
optimizer: {{momentum: 0.9, nesterov: true, weight_decay: 1.0e-4}}
lr: {{base: 0.01, scaling: none, warmup: none, schedule: constant}}
phases: [{{epochs: 2, image_size: 64, batch_per_worker: 64}}]
train: {{precision: {precision}, channels_last: true, log_every: 20}}
metrics: {{port: {port}}}
"""
WARMUP_STEPS = 3
TRAINERS = ("hvdtrain", "hvdtrain, torch engine", "ddp")


def config(precision: str) -> Config:
    """Config of both trainers; channels_last is hvdtrain's default and faster for both."""
    port = os.environ.get("BENCHMARK_PORT", "19400")
    return parse_config(CONFIG.format(precision=precision, port=port))


def own_batch(cfg: Config) -> Batch:
    """Training batch of one rank."""
    phase = cfg.phases[0]
    return random_batch(
        phase.batch_per_worker, phase.image_size, 1000, channels_last=cfg.train.channels_last
    )


def run_hvdtrain(precision: str, steps: int) -> None:
    """Run one rank of hvdtrain: an epoch of `steps` steps to warm up, and a timed one."""
    comm = init_comm()
    choose_device(comm)  # as the first thing in `hvdtrain train`
    cfg = config(precision)
    batch = own_batch(cfg)
    with memory_run(cfg, comm, batch, steps) as run:
        efficiency = Efficiency(run)
        for epoch in run.plan.epochs:
            seconds = timed_epoch(run, epoch, efficiency)
    print_speed(comm.rank, comm.size * steps * len(batch.labels) / seconds)
    comm.shutdown()


def run_ddp(precision: str, steps: int) -> None:
    """Run one rank of a bare loop with DistributedDataParallel."""
    from torch import distributed

    distributed.init_process_group("gloo")
    cfg = config(precision)
    batch = own_batch(cfg)
    torch.manual_seed(cfg.seed)
    model = build_model(cfg.model, 1000).train()
    if cfg.train.channels_last:
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    # DDP's fastest settings here. Every rank keeps its own buffers, as in hvdtrain. Bucket views
    # would not have the memory layout of channels_last parameters.
    network = torch.nn.parallel.DistributedDataParallel(
        model,
        broadcast_buffers=False,
        gradient_as_bucket_view=not cfg.train.channels_last,
    )
    params = list(model.parameters())
    optimizer = torch.optim.SGD(
        [
            {"params": [p for p in params if p.ndim > 1], "weight_decay": 1e-4},
            {"params": [p for p in params if p.ndim <= 1], "weight_decay": 0.0},
        ],
        lr=0.01,
        momentum=0.9,
        nesterov=True,
        # not fused: torch's fused kernel is slower for channels_last parameters on a CPU
    )
    for step in range(WARMUP_STEPS + steps):
        if step == WARMUP_STEPS:
            distributed.barrier()
            began = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            logits = network(batch.images)
        loss = functional.cross_entropy(logits.float(), batch.labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    seconds = time.perf_counter() - began
    print_speed(distributed.get_rank(), RANKS * steps * len(batch.labels) / seconds)
    distributed.destroy_process_group()


def print_speed(rank: int, images_per_second: float) -> None:
    """Print the result on rank 0, for the process that started the job."""
    if rank == 0:
        print(json.dumps({"images_per_second": images_per_second}), flush=True)


def launch(trainer: str, precision: str, steps: int) -> float:
    """Run one job to its end; returns images/s, sum over ranks."""
    worker = [str(Path(__file__).resolve()), "--worker", trainer, precision, str(steps)]
    scripts = Path(sys.executable).parent
    env = {**os.environ, "OMP_NUM_THREADS": "1", "BENCHMARK_PORT": str(free_port(RANKS))}
    if trainer == "hvdtrain":
        mpirun = scripts / "mpirun"
        command = [str(mpirun) if mpirun.exists() else "mpirun", "-np", str(RANKS)]
        command += [sys.executable, *worker]
        env["OMPI_MCA_mpi_yield_when_idle"] = "1"
        if os.geteuid() == 0:
            env |= {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    else:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        command += [f"--nproc-per-node={RANKS}", *worker]
    done = subprocess.run(
        command, check=False, env=env, capture_output=True, text=True, timeout=600
    )
    if done.returncode != 0:
        sys.exit(f"{trainer} {precision}: exit code {done.returncode}:\n{done.stdout}{done.stderr}")
    result: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return result["images_per_second"]


def main() -> None:
    """Parse the arguments, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--quick", action="store_true", help="fewer, shorter rounds: about 2 minutes"
    )
    parser.add_argument("--rounds", type=int, help="runs of each job (default 7, quick 3)")
    parser.add_argument("--steps", type=int, help="steps of each run (default 30, quick 12)")
    parser.add_argument("--worker", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        torch.set_num_threads(1)
        trainer, precision, steps = args.worker
        (run_ddp if trainer == "ddp" else run_hvdtrain)(precision, int(steps))
        return

    rounds = args.rounds or (3 if args.quick else 7)
    steps = args.steps or (12 if args.quick else 30)
    jobs = {
        f"{trainer} {precision}": lambda t=trainer, p=precision: launch(t, p, steps)
        for precision in ("fp32", "bf16")
        for trainer in TRAINERS
    }
    speeds = in_turn(jobs, rounds)
    print(f"ResNet-18, 64 px, {RANKS} ranks × 1 thread, batch 64 per rank, {steps} steps per run")
    print_machine()
    print_table("images/s", speeds)
    print_result(
        {
            f"{key}vs_ddp_{precision}": round(
                median_ratio(speeds[f"{trainer} {precision}"], speeds[f"ddp {precision}"]), 3
            )
            for precision in ("fp32", "bf16")
            for key, trainer in zip(("", "torch_engine_"), TRAINERS, strict=False)
        }
    )


if __name__ == "__main__":
    main()
