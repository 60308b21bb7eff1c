"""Updates group by group equal one update of all parameters to the last bit."""

from __future__ import annotations

import pytest
import torch

from hvdtrain.engine.step import State
from hvdtrain.optim import UpdateByGroup, optimizer_tensors, set_rates, set_trained
from tests.step_samples import network, state_of
from tests.unit.optim.optim_references import REFERENCES


def update(state: State, step: int, *, in_parts: bool) -> None:
    generator = torch.Generator().manual_seed(step)
    state.reducer.start_step()
    for p in state.model.parameters():
        p.grad = torch.randn(p.shape, generator=generator)
        for group in state.reducer.groups:
            if p in group.places:
                group.take(p)
    set_rates(state.optimizer, 0.1, 0.9)
    if in_parts:
        for number in range(len(state.reducer.groups)):
            state.update_group(number)
    else:
        state.optimizer.step()


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("name", [*REFERENCES, "muon"])
def test_groups_equal_the_whole(name: str, frozen: bool) -> None:
    states = [state_of(network(norm=True), name=name, weight_decay=0.1) for _ in range(2)]
    for state in states:
        assert len(state.reducer.groups) > 1
        if frozen:
            next(state.model.parameters()).requires_grad_(False)
            set_trained(state.model, state.optimizer)
        for step in range(3):
            update(state, step, in_parts=state is states[1])
    whole, parts = states
    before = network(norm=True).parameters()
    for old, a, b in zip(before, whole.model.parameters(), parts.model.parameters(), strict=True):
        assert torch.equal(a, b)
        assert torch.equal(old, a) is not a.requires_grad
    kept = optimizer_tensors(parts.model, parts.optimizer)
    for key, tensor in optimizer_tensors(whole.model, whole.optimizer).items():
        assert torch.equal(tensor, kept[key]), key


def test_one_group_is_updated_and_the_optimizer_keeps_all() -> None:
    state = state_of(network(), momentum=0.9)
    before = [p.detach().clone() for p in state.model.parameters()]
    members = [list(group["params"]) for group in state.optimizer.param_groups]
    update_group = UpdateByGroup(state.optimizer, [group.params for group in state.reducer.groups])
    for p in state.model.parameters():
        assert p.grad is not None
        p.grad.fill_(1.0)
    set_rates(state.optimizer, 0.1, 0.9)
    update_group(0)
    mine = {id(p) for p in state.reducer.groups[0].params}
    for old, p in zip(before, state.model.parameters(), strict=True):
        assert torch.equal(old, p) is (id(p) not in mine)
    assert [list(group["params"]) for group in state.optimizer.param_groups] == members
