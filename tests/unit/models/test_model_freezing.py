"""Frozen parts stay as they are, and train again once unfrozen."""

import copy

import pytest
import torch

from hvdtrain.errors import ConfigError
from hvdtrain.models.freezing import freeze, unfreeze
from tests.unit.models.model_samples import build


def test_frozen_parts_stay_as_they_are() -> None:
    model = build("resnet18", freeze=["stem", "stages.0"]).train()
    frozen = [n for n, p in model.named_parameters() if not p.requires_grad]
    assert frozen == [n for n, _ in model.named_parameters() if n.startswith(("stem", "stages.0."))]
    assert len(frozen) == 3 + 12
    before = copy.deepcopy(model.state_dict())
    model(torch.randn(4, 3, 32, 32) + 3).sum().backward()
    after = model.state_dict()
    changed = {n for n, value in after.items() if not torch.equal(value, before[n])}
    assert changed
    assert not any(n.startswith(("stem", "stages.0.")) for n in changed)
    clone = copy.deepcopy(model)
    clone.train()
    assert not clone.stem[1].training
    assert clone.stages[1][0].norm1.training


def test_unfrozen_parts_train_again() -> None:
    model = build("resnet18", freeze=["stem", "stages"])
    unfreeze(model, ["stages.3", "stem"])
    model.train()
    assert model.stem[1].training
    assert model.stages[3][0].norm1.training
    assert not model.stages[2][0].norm1.training
    frozen = {n.split(".")[1] for n, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {"0", "1", "2"}
    mean = model.stem[1].running_mean.clone()
    model(torch.randn(4, 3, 32, 32))
    assert not torch.equal(model.stem[1].running_mean, mean)


def test_what_a_network_keeps_fixed_is_not_unfrozen() -> None:
    model = build("airbench94")
    fixed = [n for n, p in model.named_parameters() if not p.requires_grad]
    assert "whitening.weight" in fixed
    assert len(fixed) == 7
    freeze(model, ["whitening", "features"])
    unfreeze(model, ["whitening", "features"])
    assert [n for n, p in model.named_parameters() if not p.requires_grad] == fixed


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (["steem"], r"model\.freeze: steem: no such part; known: stem, stem\.0, stem\.1, stages, "),
        (["stages.9"], r"stages\.9: no such part"),
        (["pool"], r"pool: no such part"),
        ([""], r"no such part"),
        (["stem", "stages", "classifier"], r"nothing is left to train"),
    ],
)
def test_freezing_an_unknown_part_is_refused(parts: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build("resnet18", freeze=parts)
