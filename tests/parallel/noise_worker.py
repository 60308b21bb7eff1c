"""Check noise scale, overflow and every optimizer on the ranks of this job; fails if they differ."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import torch

from hvdtrain.comm.ranks import Comm, Solo
from hvdtrain.comm.start import init_comm
from hvdtrain.config.schema import Optimizer
from hvdtrain.engine.reducer import Reducer
from hvdtrain.engine.step import State, StepSettings, train_step
from hvdtrain.optim import build_optimizer, optimizer_tensors
from hvdtrain.optim.agc import AdaptiveClipping
from tests.noise_problem import batches, measured, state_on
from tests.step_samples import Images, drained, images, network

OPTIMIZERS = {
    "sgd": {"agc": 0.01},
    "lars": {"trust_coefficient": 0.1},
    "lamb": {"weight_decay": 0.1},
    "adamw": {"agc": 0.1},
    "muon": {"share_work": True},
}


def tensors_of(state: State) -> list[torch.Tensor]:
    optimizer = optimizer_tensors(state.model, state.optimizer)
    return [*state.model.state_dict().values(), *optimizer.values()]


def require_same_on_all(comm: Comm, state: State) -> None:
    for tensor in tensors_of(state):
        mine = tensor.detach().double().flatten()
        mean = comm.sum_(mine.clone(), "same") / comm.size
        assert torch.equal(mean, mine), "ranks differ"


def noise_scale(comm: Comm, every: int = 1) -> tuple[float, torch.Tensor]:
    state = state_on(comm, every=every)
    scale = measured(state, batches(comm, 200))
    assert state.noise.scale.measured == 200 // every
    texts = comm.gather_text(json.dumps(state.noise.scale.state()))
    assert len(set(texts)) == 1, "ranks disagree"
    return scale, state.model.weight.detach()  # type: ignore[return-value]


def weights_with(comm: Comm, every: int) -> torch.Tensor:
    state = state_on(comm, every=every)
    for batch in batches(comm, 10):
        train_step(state, batch, 0.1, 0.9)
    drained(state)
    return state.model.weight.detach()  # type: ignore[return-value]


def overflow_on_one_rank(comm: Comm, static: bool) -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    state = state_on(comm, every=1, scaler=scaler)
    state.settings = replace(state.settings, static_loss_scale=1024.0 if static else None)
    data = batches(comm, 3)
    train_step(state, data[0], 0.1, 0.9)
    before = [tensor.clone() for tensor in tensors_of(state)]
    if comm.rank == comm.size - 1:
        hook = state.model.weight.register_hook(  # type: ignore[union-attr, operator]
            lambda gradient: torch.full_like(gradient, torch.inf)
        )
    train_step(state, data[1], 0.1, 0.9)
    assert all(torch.equal(a, b) for a, b in zip(before, tensors_of(state), strict=True))
    assert scaler.get_scale() == (1024.0 if static else 512.0)
    if comm.rank == comm.size - 1:
        hook.remove()
    train_step(state, data[2], 0.1, 0.9)
    assert not torch.equal(before[0], tensors_of(state)[0])
    require_same_on_all(comm, state)
    drained(state)
    assert state.noise.scale.measured == 2


def updates(comm: Comm, name: str, shard: slice) -> State:
    model = network().to(memory_format=torch.channels_last)
    cfg = Optimizer.model_validate({"name": name, **OPTIMIZERS[name]})
    state = State(
        model=model,
        reducer=Reducer(model.parameters(), comm, group_bytes=900),
        optimizer=build_optimizer(model, cfg, ranks=comm),
        scaler=torch.amp.GradScaler("cpu", enabled=False),
        comm=comm,
        settings=StepSettings(
            torch.device("cpu"), agc=AdaptiveClipping(model, cfg.agc) if cfg.agc else None
        ),
    )
    for step in range(5):
        whole = images(12, step)
        part = Images(whole.images[shard], whole.labels[shard], whole.weights[shard])
        train_step(state, part, 0.01, 0.9)
    return state


def main(out: Path) -> None:
    comm = init_comm()
    scale, _ = noise_scale(comm)
    assert torch.equal(weights_with(comm, 3), weights_with(comm, 0))
    for static in (False, True):
        overflow_on_one_rank(comm, static)
    for name in OPTIMIZERS:
        many = updates(comm, name, slice(comm.rank, None, comm.size))
        require_same_on_all(comm, many)
        one = updates(Solo(), name, slice(None))
        for a, b in zip(many.model.parameters(), one.model.parameters(), strict=True):
            assert float((a - b).detach().abs().max()) <= 1e-5, name
    if comm.rank == 0:
        out.write_text(json.dumps(scale))
    comm.shutdown()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
