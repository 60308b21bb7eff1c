"""Trains with a bit that flips on one rank after an update, once for each line of settings in a file.

Arguments: the config, a JSON list of [rank, part, settings], a JSON file for what every rank says of
each: exit code, message, and the digests of the state of all ranks at the end. Rank None: no flip.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch

from hvdtrain import train
from hvdtrain.comm.start import init_comm
from hvdtrain.config.load import load_config
from hvdtrain.engine.step import State
from hvdtrain.errors import HvdtrainError
from hvdtrain.optim import optimizer_tensors
from hvdtrain.run.guard.divergence import gather_digests

AFTER = 3
"""The update after which the bit flips."""
JUMP_AFTER = 40
PARTS = ("weights", "optimizer", "averages")
train_step = train.train_step
states: list[State] = []


def flip(tensor: torch.Tensor, bit: int) -> None:
    """Change one bit of the first number."""
    memory = tensor.detach().as_strided((1,), (1,), tensor.storage_offset()).view(torch.int32)
    memory ^= 1 << bit


def faulty(odd: int | None, part: str) -> Any:
    """`train_step` with a bit that flips in the weights, the optimizer state or the averages after
    an update, with images that are not numbers in it, or with all images taken for one class on all
    ranks."""

    def step(state: State, *args: Any, **kwargs: Any) -> torch.Tensor:
        if part == "images" and state.progress.step == AFTER - 1 and state.comm.rank == odd:
            args[0].images.fill_(torch.nan)
        sums = train_step(state, *args, **kwargs)
        states[:] = [state]
        if part == "jump" and state.progress.step == JUMP_AFTER:
            list(state.model.parameters())[-1].data[0] = 1000.0
        if part in PARTS and state.progress.step == AFTER and state.comm.rank == odd:
            weight = next(name for name, _ in state.model.named_parameters())
            found = {"weights": dict(state.model.named_parameters())}
            found["optimizer"] = {
                name.removesuffix("/momentum_buffer"): tensor
                for name, tensor in optimizer_tensors(state.model, state.optimizer).items()
            }
            found["averages"] = state.ema.tensors if state.ema is not None else {}
            flip(found[part][weight], 12)
        return sums

    return step


def main(config: str, cases: str, results: Path) -> None:
    train.write_page = lambda run: None  # matplotlib takes seconds
    comm = init_comm()
    said = []
    for number, (odd, part, settings) in enumerate(json.loads(cases)):
        train.train_step = faulty(odd, part)
        code, text = 0, ""
        try:
            cfg = load_config(config, settings)
            train.train(cfg, comm, run_dir=Path(f"runs/{number}"))
        except HvdtrainError as error:
            code, text = error.exit_code, str(error)
        mine = [code, text, gather_digests(states[0])[0]]
        said.append([json.loads(each) for each in comm.gather_text(json.dumps(mine))])
    if comm.rank == 0:
        results.write_text(json.dumps(said))
    comm.shutdown()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
