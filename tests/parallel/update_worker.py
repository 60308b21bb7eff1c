"""Updates by group, while later groups are summed, give the weights of one update of all; Muon's work
shared out over ranks gives those of a rank alone; and with a teacher that rank 0 reads, those of one
process with the whole batch."""

from __future__ import annotations

from pathlib import Path

import safetensors.torch
import torch
from torch import nn

from hvdtrain.comm.ranks import Comm, Solo
from hvdtrain.comm.start import init_comm
from hvdtrain.config.load import parse_config
from hvdtrain.engine.step import State, train_step
from hvdtrain.engine.teacher import load_teacher
from hvdtrain.models import MODELS
from hvdtrain.optim import optimizer_tensors
from tests.step_samples import Images, images, network, state_of

MUON = {"name": "muon", "nesterov": True, "normalize_filters": True}


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


def hidden_matrices() -> nn.Module:
    torch.manual_seed(3)
    first, second = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 8, 3, padding=1)
    return nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), nn.Flatten(), nn.Linear(512, 7))


def shared_work(comm: Comm, dtype: torch.dtype | None) -> None:
    """All ranks have the same batch, so that their mean gradient is a rank's own, to the bit."""
    many = state_of(hidden_matrices(), comm=comm, share_work=True, **MUON)
    one = state_of(hidden_matrices(), **MUON)
    computed: list[int] = []
    for state in (many, one):
        state.optimizer._dtype = dtype  # type: ignore[attr-defined]
    own = many.optimizer._one  # type: ignore[attr-defined]

    def counted(matrix: torch.Tensor) -> torch.Tensor:
        computed.append(matrix.numel())
        return own(matrix)  # type: ignore[no-any-return]

    many.optimizer._one = counted  # type: ignore[attr-defined]
    for step in range(4):
        for state in (many, one):
            train_step(state, images(6, step), 0.05, 0.9, norm=step == 2)
    assert computed == [(432, 162)[comm.rank]] * 4
    tensors = [optimizer_tensors(state.model, state.optimizer) for state in (many, one)]
    for name, tensor in tensors[0].items():
        assert torch.equal(tensor, tensors[1][name]), name
    for a, b in zip(many.model.parameters(), one.model.parameters(), strict=True):
        assert torch.equal(a, b)


if __name__ == "__main__":
    comm = init_comm()
    torch.set_num_threads(1)
    for dtype in (None, torch.bfloat16):
        shared_work(comm, dtype)
    for options in ({}, {"name": "lamb"}, {"clip_norm": 0.05}, {"name": "muon"}):
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
