"""PowerSGD on the ranks of this job: gradients compared with the paper's algorithm, and trainings that are
resumed in mid-epoch on as many ranks, and on others."""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path

import safetensors.torch
import torch
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.powerSGD_hook import PowerSGDState, powerSGD_hook
from torch.nn.parallel import DistributedDataParallel

from hvdtrain import train
from hvdtrain.comm.ranks import Comm
from hvdtrain.comm.start import init_comm
from hvdtrain.config.load import load_config
from hvdtrain.engine import checkpoint_errors
from hvdtrain.engine.checkpoint_errors import gather_errors
from hvdtrain.errors import SumRefused
from hvdtrain.run.prepare import prepare
from tests.cut_runs import cut
from tests.low_rank import made, paper, step

SHAPE = (24, 16, 3, 3)
STEPS = 20


def gradients(rank: int) -> list[torch.Tensor]:
    """[24, 16, 3, 3] float64 of each step."""
    generator = torch.Generator().manual_seed(rank)
    return [torch.randn(SHAPE, generator=generator, dtype=torch.float64) for _ in range(STEPS)]


def check_gradients(comm: Comm) -> None:
    """Each step's is that of the paper to 1e-9, equal on all ranks to the bit; bytes are those of P and Q."""
    params, reducer = made(comm, [SHAPE, (7,)], rank=3, group_bytes=1.0)
    assert reducer.memory is not None
    matrix = reducer.memory.matrices[params[0]]
    every = [[g.flatten(1) for g in gradients(rank)] for rank in range(comm.size)]
    expected = paper(list(zip(*every, strict=True)), matrix.factor_rows.T.clone())
    for gradient, (product, errors, _) in zip(gradients(comm.rank), expected, strict=True):
        step(reducer, params, [gradient, torch.full((7,), 1.0 + comm.rank)])
        assert (params[0].grad.flatten(1) - product).abs().max() < 1e-9
        assert (comm.size * matrix.error_rows - errors[comm.rank]).abs().max() < 1e-9
        assert params[1].grad.tolist() == [(comm.size + 1) / 2] * 7
        for kept in (params[0].grad, matrix.factor):
            rows = comm.gather(kept.flatten(), "compare")
            assert torch.equal(rows, rows[:1].expand_as(rows))
    sent = 8 * (24 * 3 + 144 * 3 + 7)
    assert reducer.step_bytes == sent
    assert reducer.bytes_sent == (STEPS * sent if comm.size > 1 else 0)
    assert reducer.calls == (STEPS * 3 if comm.size > 1 else 0)


class Product(nn.Module):
    """A weight whose gradient is what is given to it."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(SHAPE, dtype=torch.float64))

    def forward(self, gradient: torch.Tensor) -> torch.Tensor:
        return (self.weight * gradient).sum()


def check_ddp(comm: Comm) -> None:
    """From the errors and Q of torch's hook for DDP on, gradients are those of that hook to 1e-9."""
    network = DistributedDataParallel(Product())
    hook = PowerSGDState(
        None, matrix_approximation_rank=3, start_powerSGD_iter=2, orthogonalization_epsilon=0
    )
    network.register_comm_hook(hook, powerSGD_hook)
    params, reducer = made(comm, [SHAPE], rank=3)
    assert reducer.memory is not None
    matrix = reducer.memory.matrices[params[0]]
    for number, gradient in enumerate(gradients(comm.rank)):
        network.zero_grad()
        network(gradient).backward()
        if number == 4:  # two steps of its own without compression, and three with
            matrix.error_rows.copy_(hook.error_dict[0].view(SHAPE[0], -1) / comm.size)
            matrix.factor_rows.copy_(hook.q_memory_dict[0].view(-1, 3).T)
        elif number > 4:
            step(reducer, params, [gradient])
            theirs = network.module.weight.grad
            assert (params[0].grad - theirs).abs().max() < 1e-9 < theirs.abs().max()


def check_refused(comm: Comm) -> None:
    """A step that the last rank refuses ends on all, leaves errors and Q as they were, and the next one is right."""
    params, reducer = made(comm, [SHAPE, SHAPE, (7,)], rank=3, group_bytes=1.0)
    assert reducer.memory is not None
    matrices = [reducer.memory.matrices[p] for p in params[:2]]
    given = [[g, 2 * g, torch.ones(7)] for g in gradients(comm.rank)]
    step(reducer, params, given[0])
    before = [t.clone() for matrix in matrices for t in (matrix.error, matrix.factor)]
    if comm.rank == comm.size - 1:
        reducer.refuse()
    else:
        try:
            step(reducer, params, given[1])
        except SumRefused:
            reducer.abandon()
        else:
            raise AssertionError("the step was not refused")
    after = [t for matrix in matrices for t in (matrix.error, matrix.factor)]
    assert all(map(torch.equal, before, after))
    step(reducer, params, given[2])
    rows = comm.gather(params[1].grad.flatten(), "compare")
    assert torch.equal(rows, rows[:1].expand_as(rows))
    assert (params[1].grad - 2 * params[0].grad).norm() > 0  # their Q differ
    assert params[2].grad.tolist() == [1.0] * 7


def restored_errors(comm: Comm, config: Path, run_dir: Path, target: Path) -> None:
    """Write what the ranks have of the errors in the newest checkpoint of `run_dir`."""
    with contextlib.closing(prepare(load_config(config), comm, str(run_dir), None)) as run:
        found = gather_errors(run.state)
    if comm.rank == 0:
        safetensors.torch.save_file({k: t.contiguous() for k, t in found.items()}, target)


def main(folder: Path, mode: str) -> None:
    train.write_page = lambda run: None  # matplotlib takes seconds
    checkpoint_errors.CHUNK = 3000  # several pieces of the largest tensors
    comm, config = init_comm(), folder / "c.yaml"
    if mode == "first":
        check_gradients(comm)
        check_refused(comm)
        if comm.engine == "torch":
            check_ddp(comm)
        train.train(load_config(config), comm, run_dir=folder / "whole")
        every = load_config(config, ["checkpoint.every_steps=4"])
        train.train(every, comm, run_dir=folder / "steps")
        cut(comm, folder / "steps", folder / "resumed")
        train.train(load_config(config), comm, resume=str(folder / "resumed"))
    elif mode == "other":  # on another number of ranks than the run `steps` had
        check_gradients(comm)
        cut(comm, folder / "steps", folder / "changed")
        restored_errors(comm, config, folder / "changed", folder / "changed.safetensors")
        every = load_config(config, ["checkpoint.every_steps=4"])
        train.train(every, comm, resume=str(folder / "changed"))
    else:  # and back
        cut(comm, folder / "changed", folder / "back", "e0002-s0000000000")
        restored_errors(comm, config, folder / "back", folder / "back.safetensors")
        train.train(load_config(config), comm, resume=str(folder / "back"))
        without = ["comm.compression=none"]
        cut(comm, folder / "steps", folder / "none")
        train.train(load_config(config, without), comm, resume=str(folder / "none"))
    if comm.rank == 0:
        print(json.dumps({"ranks": comm.size}))
    comm.shutdown()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
