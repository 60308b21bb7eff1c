"""What keeps the global batch on another number of ranks."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hvdtrain.config.load import parse_config
from hvdtrain.config.schema import Config
from hvdtrain.errors import ConfigError
from hvdtrain.plan.epochs import Position, make_plan
from hvdtrain.run.changes import Begun, Change, compare
from hvdtrain.run.other_ranks import Batch, UnsharedError, shared_anew, told


def config(accumulate: int, *sizes: int, more: str = "") -> Config:
    phases = "".join(f"\n  - {{epochs: 2, batch_per_worker: {size}}}" for size in sizes)
    return parse_config(
        f"data: {{train_size: 4096}}\ntrain: {{accumulate: {accumulate}{more}}}\nphases:{phases}"
    )


def begun(cfg: Config, ranks: int | None, given: Batch | None = None) -> Begun:
    return Begun(cfg, ranks, Position(1, 64), 4096, given)


@pytest.mark.parametrize(
    ("given", "wanted", "ranks", "used"),
    [
        ((1, [64]), [256], 2, (2, [64])),
        ((1, [64]), [256], 1, (4, [64])),
        ((1, [64]), [256], 8, (1, [32])),
        ((4, [64]), [512], 4, (2, [64])),
        ((4, [64]), [512], 8, (1, [64])),
        ((1, [64]), [192], 2, (2, [48])),  # 1.5 × 64 on each
        ((1, [64, 16]), [256, 64], 2, (2, [64, 16])),
        ((1, [12, 8]), [72, 48], 4, (2, [9, 6])),
        ((1, [9, 4]), [54, 24], 2, (3, [9, 4])),
        ((1, [10, 4]), [60, 24], 4, (3, [5, 2])),  # 2 steps suffice for the memory, but not for 15
        ((1, [64, 7]), [256], 2, (2, [64, 7])),  # a phase that the run did not have
    ],
)
def test_the_batch_of_other_ranks(
    given: tuple[Any, ...], wanted: list[int], ranks: int, used: tuple[Any, ...]
) -> None:
    found = shared_anew(Batch(*given), wanted, ranks)
    assert found == Batch(*used)
    assert found.total(ranks)[: len(wanted)] == wanted


@given(
    st.integers(1, 6), st.lists(st.integers(1, 40), min_size=1, max_size=3),
    st.integers(1, 12), st.integers(1, 12),
)  # fmt: skip
def test_any_batch_is_kept_or_refused_with_ranks_that_keep_it(
    accumulate: int, sizes: list[int], before: int, ranks: int
) -> None:
    given_before = Batch(accumulate, sizes)
    wanted = given_before.total(before)
    try:
        found = shared_anew(given_before, wanted, ranks)
    except UnsharedError as error:
        assert math.gcd(*wanted) % ranks
        words = str(error).partition("use ")[2].partition(" ranks")[0].split(" or ")
        assert words
        for word in words:
            assert shared_anew(given_before, wanted, int(word)).total(int(word)) == wanted
        return
    assert found.total(ranks) == wanted
    # No more memory than before.
    assert all(new <= old for new, old in zip(found.per_worker, sizes, strict=True))


def test_what_is_told() -> None:
    one, two = Batch(1, [64]), Batch(2, [64])
    assert told(one, two, 2, 4) == (
        "resumed on 2 ranks instead of 4: 2 accumulation steps keep the global batch of 256"
    )
    assert told(one, Batch(4, [64]), 1, 1) == (
        "resumed on 1 rank again: 4 accumulation steps keep the global batch of 256"
    )
    assert told(Batch(2, [64, 8]), Batch(1, [48, 6]), 8, 3) == (
        "resumed on 8 ranks instead of 3: phases.0.batch_per_worker 48 instead of 64, "
        "phases.1.batch_per_worker 6 instead of 8 and 1 accumulation step keep the global batch of "
        "384 and 48"
    )
    shared = told(one, Batch(2, [64]), 2, 4, global_norm=True)
    assert shared.endswith("; batch norm takes its statistics over 128 images instead of 256")
    assert "batch norm" not in told(one, Batch(1, [32]), 8, 4, global_norm=True)


def changes(before: Begun, cfg: Config, ranks: int) -> tuple[Batch | None, list[Change]]:
    batch = before.batch_for(cfg, ranks)
    return batch, compare(before, batch.put_in(cfg) if batch else cfg, ranks)


def test_learning_rates_updates_and_images_stay_the_same() -> None:
    cfg = config(1, 64, 32)
    batch, found = changes(begun(cfg, 4), cfg, 2)
    assert batch == Batch(2, [64, 32])
    assert [c.text for c in found] == ["train.accumulate 1 → 2", "ranks 4 → 2"]
    assert {c.kind for c in found} == {"plan"}
    before, after = make_plan(cfg, 4), make_plan(batch.put_in(cfg), 2)
    assert before.total_steps == after.total_steps
    for one, two in zip(before.epochs, after.epochs, strict=True):
        assert one.lr(3) == two.lr(3)
        assert one.position_after(5) == two.position_after(5)


def test_the_same_command_on_any_ranks_in_turn() -> None:
    given_cfg = config(1, 64)
    cfg, ranks = given_cfg, 4
    for now, steps in ((2, 2), (2, 2), (1, 4), (4, 1), (2, 2)):
        batch = begun(cfg, ranks, Batch.of(given_cfg)).batch_for(given_cfg, now)
        cfg = batch.put_in(given_cfg) if batch else given_cfg
        ranks = now
        assert cfg.train.accumulate == steps
    # The config.yaml of the run itself, which has two steps on two ranks.
    assert begun(cfg, 2, Batch.of(given_cfg)).batch_for(cfg, 4) == Batch(1, [64])


def test_what_a_user_changes_is_not_replaced() -> None:
    before = begun(config(1, 64), 4)
    for other in (config(3, 64), config(1, 32)):
        batch, found = changes(before, other, 2)
        assert batch is None
        assert (found[0].kind, found[0].setting) == ("identity", "global batch of phases.0")
    assert changes(before, config(2, 64), 2)[0] is None


def test_the_global_batch_may_change_if_the_config_says_so() -> None:
    before = begun(config(1, 64), 4)
    free = ", on_other_ranks: as_given"
    for ranks in (2, 3, 8):  # on 8 the rate rises with the batch
        batch, found = changes(before, config(1, 64, more=free), ranks)
        assert batch is None
        assert [(c.kind, c.text) for c in found] == [
            ("plan", f"ranks 4 → {ranks}"),
            ("plan", f"global batch of phases.0 256 → {64 * ranks}"),
        ]
    # On as many ranks it is still another run.
    assert changes(before, config(2, 64, more=free), 4)[1][0].kind == "identity"


@pytest.mark.parametrize(
    "values",
    [None, 1, {}, {"accumulate": 1}, {"accumulate": "1", "batch_per_worker": [2]},
     {"accumulate": 1, "batch_per_worker": 2}, {"accumulate": 1, "batch_per_worker": [True]}],
)  # fmt: skip
def test_a_damaged_record_is_none(values: object) -> None:
    assert Batch.read(values) is None


def test_a_record_is_read_back() -> None:
    batch = Batch(2, [3, 4])
    assert Batch.read(batch.as_dict()) == batch


def test_ranks_that_cannot_share() -> None:
    with pytest.raises(ConfigError, match="3 ranks cannot share the global batch of 256 images"):
        begun(config(1, 64), 4).batch_for(config(1, 64), 3)
