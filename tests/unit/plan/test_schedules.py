"""Rates and momentum equal torch's schedulers, numpy versions of formulas and worked examples."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.optim import lr_scheduler

from hvdtrain.config.load import parse_config
from hvdtrain.errors import ConfigError
from hvdtrain.plan.epochs import Plan, Position, make_plan
from hvdtrain.plan.text import plan_text

EPOCHS, STEPS = 12, 10
"""Epochs of all runs here, and steps of each epoch."""


def plan_of(lr: str, *, more: str = "", phases: str | None = None, ranks: int = 1) -> Plan:
    phases = phases or f"[{{epochs: {EPOCHS}, batch_per_worker: 100}}]"
    return make_plan(parse_config(f"lr: {lr}\nphases: {phases}\n{more}"), ranks, 100 * STEPS)


def rates(plan: Plan) -> list[float]:
    return [epoch.lr(i) for epoch in plan.epochs for i in range(epoch.steps)]


def momenta(plan: Plan) -> list[float]:
    return [epoch.momentum(i) for epoch in plan.epochs for i in range(epoch.steps)]


def torch_values(kind: Any, lr: float = 0.4, **options: Any) -> tuple[list[float], list[float]]:
    """Rates and momenta of one of torch's schedulers, step by step."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr, momentum=0.9)
    scheduler = kind(optimizer, **options)
    found: list[tuple[float, float]] = []
    for _ in range(EPOCHS * STEPS):
        found.append((optimizer.param_groups[0]["lr"], optimizer.param_groups[0]["momentum"]))
        optimizer.step()
        scheduler.step()
    first, second = zip(*found, strict=True)
    return list(first), list(second)


def same(found: list[float], expected: list[float]) -> bool:
    return len(found) == len(expected) and bool(np.allclose(found, expected, rtol=1e-9, atol=1e-12))


def test_step_equals_torch_steplr() -> None:
    found = plan_of("{base: 0.4, scaling: none, warmup: none, milestones: [4, 8], gamma: 0.3}")
    expected, _ = torch_values(lr_scheduler.StepLR, step_size=4 * STEPS, gamma=0.3)
    assert same(rates(found), expected)


@pytest.mark.parametrize("power", [1.0, 2.0, 0.9])
def test_polynomial_equals_torch_polynomiallr(power: float) -> None:
    found = plan_of(
        f"{{base: 0.4, scaling: none, warmup: none, schedule: polynomial, power: {power}}}"
    )
    expected, _ = torch_values(lr_scheduler.PolynomialLR, total_iters=EPOCHS * STEPS, power=power)
    assert same(rates(found), expected)


@pytest.mark.parametrize("schedule", ["cosine", "polynomial"])
def test_decay_begins_where_the_warmup_ends(schedule: str) -> None:
    """The part after the warmup is torch's scheduler over the epochs that are left."""
    found = plan_of(
        f"{{base: 0.4, scaling: none, warmup_epochs: 2, warmup_start: 0, schedule: {schedule}}}"
    )
    left = (EPOCHS - 2) * STEPS
    kind: Any = lr_scheduler.CosineAnnealingLR
    options: dict[str, float] = {"T_max": left}
    if schedule == "polynomial":
        kind, options = lr_scheduler.PolynomialLR, {"total_iters": left, "power": 2.0}
    assert same(rates(found)[2 * STEPS :], torch_values(kind, **options)[0][:left])
    assert same(rates(found)[: 2 * STEPS], [0.4 * i / 20 for i in range(20)])


@pytest.mark.parametrize("anneal", ["cos", "linear"])
@pytest.mark.parametrize(("pct_start", "div", "final_div"), [(0.3, 25, 1e4), (0.45, 10, 1)])
def test_onecycle_equals_torch_onecyclelr(
    anneal: str, pct_start: float, div: float, final_div: float
) -> None:
    """torch has its last value at its last step, so our T steps are the first T of T + 1 in torch.
    The peak, which torch has at step pct_start · total - 1, is at the same step."""
    found = plan_of(
        "{base: 0.4, scaling: none, warmup: none, schedule: onecycle, cycle_momentum: [0.8, 0.93], "
        f"anneal: {anneal}, pct_start: {pct_start}, div_factor: {div}, "
        f"final_div_factor: {final_div}}}"
    )
    total = EPOCHS * STEPS
    expected = torch_values(
        lr_scheduler.OneCycleLR,
        max_lr=0.4,
        total_steps=total + 1,
        pct_start=(pct_start * total + 1) / (total + 1),
        anneal_strategy=anneal,
        base_momentum=0.8,
        max_momentum=0.93,
        div_factor=div,
        final_div_factor=final_div,
    )
    assert same(rates(found), expected[0])
    assert same(momenta(found), expected[1])
    assert max(expected[0]) == pytest.approx(0.4)


@pytest.mark.parametrize(("div", "pct"), [(20, 20), (10, 10), (12.5, 0)])
def test_onecycle_fastai_equals_its_formula_in_numpy(div: float, pct: float) -> None:
    """fastai 0.7's `use_clr_beta=(div, pct, 0.95, 0.85)`, written in numpy."""
    found = plan_of(
        "{base: 1.5, scaling: none, warmup: none, schedule: onecycle_fastai, "
        f"cycle_momentum: [0.85, 0.95], div_factor: {div}, pct_final: {pct / 100}}}"
    )
    total = EPOCHS * STEPS
    half = total * (1 - pct / 100) / 2
    step = np.arange(total, dtype=np.float64)
    times = [0, half, 2 * half] if pct == 0 else [0, half, 2 * half, total]
    low = 1.5 / div
    expected = np.interp(step, times, [low, 1.5, low, low / 100][: len(times)])
    momentum = np.interp(step, times, [0.95, 0.85, 0.95, 0.95][: len(times)])
    assert same(rates(found), expected.tolist())
    assert same(momenta(found), momentum.tolist())


@pytest.mark.parametrize("mode", ["triangular", "triangular2", "exp_range"])
def test_cyclical_equals_torch_cycliclr(mode: str) -> None:
    found = plan_of(
        "{base: 0.4, scaling: none, warmup: none, schedule: cyclical, div_factor: 8, "
        f"cycle_epochs: 4, cycle_mode: {mode}, gamma: 0.9, cycle_momentum: [0.8, 0.9]}}"
    )
    expected = torch_values(
        lr_scheduler.CyclicLR,
        base_lr=0.05,
        max_lr=0.4,
        step_size_up=2 * STEPS,
        mode=mode,
        gamma=0.9 ** (1 / STEPS),
        base_momentum=0.8,
        max_momentum=0.9,
    )
    assert same(rates(found), expected[0])
    assert same(momenta(found), expected[1])


def test_triangular2_by_hand() -> None:
    """Smith 2015, 3.1: the difference between the bounds is halved at the end of each cycle."""
    found = plan_of(
        "{base: 1.0, scaling: none, warmup: none, schedule: cyclical, div_factor: 5, "
        "cycle_epochs: 4, cycle_mode: triangular2}"
    )
    assert [round(epoch.lr(0), 9) for epoch in found.epochs] == [
        0.2, 0.6, 1.0, 0.6, 0.2, 0.4, 0.6, 0.4, 0.2, 0.3, 0.4, 0.3,
    ]  # fmt: skip


def test_a_cycle_follows_the_batch_and_the_phase() -> None:
    """Half the batch gives half the rate at the same time; a phase's own values come first."""
    lr = (
        "{base: 0.4, base_batch: 100, warmup: none, schedule: onecycle, cycle_momentum: [0.8, 0.9]}"
    )
    whole = plan_of(lr)
    parts = plan_of(
        lr,
        phases="[{epochs: 6, batch_per_worker: 100}, {epochs: 4, batch_per_worker: 50}, "
        "{epochs: 2, batch_per_worker: 100, lr: [0.02, 0.01], momentum: [0.5, 0.7]}]",
    )
    for t in (0, 3, 5):
        assert parts.epochs[t].lr(0) == whole.epochs[t].lr(0)
    for t in (6, 8, 9):
        assert parts.epochs[t].lr(0) == pytest.approx(whole.epochs[t].lr(0) / 2)
        assert parts.epochs[t].momentum(0) == whole.epochs[t].momentum(0)
    assert [parts.epochs[10].lr(0), parts.epochs[11].lr(0)] == pytest.approx([0.02, 0.015])
    assert [parts.epochs[10].momentum(5), parts.epochs[11].momentum(0)] == pytest.approx(
        [0.55, 0.6]
    )


def test_momentum_is_that_of_the_optimizer_unless_set() -> None:
    found = plan_of("{warmup: none}", more="optimizer: {momentum: 0.7}")
    assert set(momenta(found)) == {0.7}
    one = plan_of("{}", phases="[{epochs: 1, batch_per_worker: 50, momentum: 0.6}]")
    assert set(momenta(one)) == {0.6}


def test_warmup_start() -> None:
    found = plan_of(
        "{base: 0.1, base_batch: 50, warmup_epochs: 2, warmup_start: 0.02, schedule: constant}",
        ranks=4,
    )
    first = [epoch.lr(0) for epoch in found.epochs[:4]]
    assert first == pytest.approx([0.02, (0.02 + 0.8) / 2, 0.8, 0.8])


@pytest.mark.parametrize(
    ("lr", "message"),
    [
        ("{schedule: onecycle}", "rises by itself: set warmup: none, found gradual"),
        ("{schedule: onecycle_fastai, warmup: constant}", "set warmup: none, found constant"),
        ("{schedule: cyclical, warmup: none}", "needs cycle_epochs"),
        ("{cycle_momentum: [0.8, 0.9]}", "cycle_momentum needs schedule onecycle"),
        (
            "{schedule: onecycle, warmup: none, cycle_momentum: [0.9, 0.8]}",
            "at the highest rate, at the lowest",
        ),
        ("{schedule: onecycle, warmup: none, pct_start: 1}", "lr.pct_start"),
        ("{schedule: onecycle, warmup: none, div_factor: 0.5}", "lr.div_factor"),
    ],
)
def test_refused_in_one_line(lr: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        plan_of(lr)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("lr", "phase", "key"),
    [
        (
            "{schedule: onecycle, warmup: none, cycle_momentum: [0.8, 0.9]}",
            "{epochs: 1}",
            "lr.cycle_momentum",
        ),
        ("{}", "{epochs: 1, momentum: 0.5}", "phases.0.momentum"),
    ],
)
def test_momentum_that_changes_needs_a_buffer(lr: str, phase: str, key: str) -> None:
    with pytest.raises(ConfigError, match=rf"^{key}: .* needs optimizer.momentum above 0, found 0"):
        plan_of(lr, phases=f"[{phase}]", more="optimizer: {momentum: 0}")


def test_rate_outside_the_buffer_needs_no_momentum_correction() -> None:
    """Goyal et al. 2017, remark 2. torch: v = m·v + g, w -= lr·v. With the rate in the buffer,
    u = m·u + lr·g, w -= u, the same weights come out only if m is corrected by lr/lr_before."""
    plan = plan_of("{base: 0.4, scaling: none, warmup_epochs: 3, milestones: [6, 9]}")
    rng = np.random.default_rng(0)
    curvature, start = rng.uniform(0.1, 1.0, 5), rng.normal(size=5)

    def other_form(*, corrected: bool) -> np.ndarray:
        w, u, before = start.copy(), np.zeros(5), 1.0
        for lr in rates(plan):
            factor = lr / before if corrected else 1.0
            u = 0.9 * factor * u + lr * curvature * w
            w, before = w - u, lr
        return w

    weights = torch.nn.Parameter(torch.from_numpy(start.copy()))
    optimizer = torch.optim.SGD([weights], lr=0.0, momentum=0.9)
    for lr in rates(plan):
        optimizer.param_groups[0]["lr"] = lr
        weights.grad = torch.from_numpy(curvature) * weights.detach()
        optimizer.step()
    found = weights.detach().numpy()
    assert np.abs(found - other_form(corrected=True)).max() < 1e-13
    assert np.abs(found - other_form(corrected=False)).max() > 1e-9


def test_nvidias_cosine_changes_once_an_epoch() -> None:
    """The rates of their ResNet-50, 90 epochs on 8 GPUs of 256 images, by `lr_cosine_policy`."""
    lr = "{base: 0.256, base_batch: 256, warmup_epochs: 8, schedule: cosine, update: epoch}"
    cfg = parse_config(f"lr: {lr}\nphases: [{{epochs: 90, batch_per_worker: 256}}]")
    plan = make_plan(cfg, 8, 1281167)
    warmup = [0.256, 0.512, 0.768, 1.024, 1.28, 1.536, 1.792, 2.048]
    cosine = [0.5 * (1 + np.cos(np.pi * e / 82)) * 2.048 for e in range(82)]
    for epoch, expected in zip(plan.epochs, [*warmup, *cosine], strict=True):
        for step in (0, 1, epoch.steps - 1):
            assert epoch.lr(step) == pytest.approx(expected, rel=1e-12)
    rest = next(plan.epochs_from(Position(3, 20480)))
    assert rest.lr(0) == pytest.approx(1.024)  # a resumed run
    text = plan_text(cfg, plan)
    assert "gradual: 1/8 of the rate more every epoch, from 1/8" in text
    assert "cosine to 0; each epoch keeps its first rate" in text
    assert "epoch      8  2.048 → 2.048" in text


def test_a_warmup_by_epochs_may_have_a_first_rate() -> None:
    """torchvision's: LinearLR from a hundredth, stepped once an epoch, then a cosine."""
    lr = "{base: 0.5, scaling: none, warmup_epochs: 5, warmup_start: 0.005, schedule: cosine, update: epoch}"
    expected = [0.005 + 0.099 * e for e in range(5)]
    expected += [0.25 * (1 + np.cos(np.pi * e / 7)) for e in range(7)]
    found = rates(plan_of(lr))
    assert same(found, [value for value in expected for _ in range(STEPS)])
    for schedule in ("onecycle", "cyclical, cycle_epochs: 2"):
        with pytest.raises(
            ConfigError, match="changes the rate with every update: set update: step"
        ):
            plan_of(f"{{warmup: none, update: epoch, schedule: {schedule}}}")
