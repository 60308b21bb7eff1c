"""Updates by group, while later groups are summed, give the weights of one update of all."""

from __future__ import annotations

import torch

from hvdtrain.comm.start import init_comm
from hvdtrain.engine.step import train_step
from tests.step_samples import images, network, state_of

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
    comm.shutdown()
