"""Updates by group, while later groups are summed, give the weights of one update of all; and with a
teacher that rank 0 reads, those of one process with the whole batch."""

from __future__ import annotations

from pathlib import Path

import safetensors.torch
import torch

from hvdtrain.comm.ranks import Comm, Solo
from hvdtrain.comm.start import init_comm
from hvdtrain.config.load import parse_config
from hvdtrain.engine.step import State, train_step
from hvdtrain.engine.teacher import load_teacher
from hvdtrain.models import MODELS
from tests.step_samples import Images, images, network, state_of


def taught(comm: Comm, shard: slice, file: Path) -> State:
    """After three updates. A rank above 0 does not have `file`."""
    teacher = (
        f"train.teacher={{weights: {file if comm.rank == 0 else 'none'}, model: resnet8_cifar}}"
    )
    cfg = parse_config("phases: [{epochs: 1}]", overrides=[teacher])
    state = state_of(network(), comm=comm)
    state.teacher = load_teacher(cfg, comm, torch.device("cpu"), 7, None)
    for step in range(3):
        whole = images(12, step)
        part = Images(whole.images[shard], whole.labels[shard], whole.weights[shard])
        train_step(state, part, 0.1, 0.9)
    return state


def learns_on_all_ranks_as_on_one(comm: Comm) -> None:
    file = Path(f"teacher-{comm.rank}.safetensors")
    torch.manual_seed(5)  # a teacher that is sure of what it says
    weights = {
        k: t * 4 if t.ndim > 1 else t for k, t in MODELS["resnet8_cifar"](7).state_dict().items()
    }
    safetensors.torch.save_file(weights, file)
    many, one = (
        taught(comm, slice(comm.rank, None, comm.size), file),
        taught(Solo(), slice(None), file),
    )
    assert many.teacher is not None
    assert one.teacher is not None
    assert set(comm.gather_text(many.teacher.sha256)) == {one.teacher.sha256}
    plain = state_of(network())
    for step in range(3):
        train_step(plain, images(12, step), 0.1, 0.9)
    triples = zip(*(state.model.parameters() for state in (many, one, plain)), strict=True)
    for a, b, without in triples:
        assert float((a - b).detach().abs().max()) <= 1e-6
        assert float((b - without).detach().abs().max()) >= 1e-4


if __name__ == "__main__":
    comm = init_comm()
    for options in ({}, {"name": "lamb"}, {"clip_norm": 0.05}):
        early, late = (state_of(network(norm=True), comm=comm, **options) for _ in range(2))
        groups: list[int] = []
        update = early.update_group

        def noted(number: int, update=update, groups=groups) -> None:  # type: ignore[no-untyped-def]
            groups.append(number)
            update(number)

        early.update_group = noted  # type: ignore[assignment]
        for step in range(3):
            batch = images(6, step * comm.size + comm.rank)
            train_step(early, batch, 0.1, 0.9)
            train_step(late, batch, 0.1, 0.9, norm=True)
        once = [] if options.get("clip_norm") else [*range(len(early.reducer.groups))]
        assert len(early.reducer.groups) > 1
        assert groups == once * 3
        for a, b in zip(early.model.parameters(), late.model.parameters(), strict=True):
            assert torch.equal(a, b)
    learns_on_all_ranks_as_on_one(comm)
    comm.shutdown()
