"""The configs of configs/: their printed plans, and the tables that their sources publish."""

from __future__ import annotations

import numpy as np
import pytest

from hvdtrain.config.load import load_config
from hvdtrain.plan.epochs import Plan, make_plan
from tests.golden.render import CONFIGS, FOLDER, WORLD_SIZES, render

RENEW = "if the change is meant: python -m tests.golden.render"


def plan_of(name: str, ranks: int) -> Plan:
    return make_plan(load_config(CONFIGS / f"{name}.yaml"), ranks)


@pytest.mark.parametrize("name", WORLD_SIZES)
def test_printed_plan(name: str) -> None:
    assert render(name) == (FOLDER / f"{name}.txt").read_text(encoding="utf-8"), RENEW


def test_every_config_has_a_golden_plan_and_a_header() -> None:
    configs = sorted(CONFIGS.glob("*.yaml"))
    assert [path.stem for path in configs] == sorted(WORLD_SIZES)
    assert sorted(path.stem for path in FOLDER.glob("*.txt")) == sorted(WORLD_SIZES)
    for path in configs:
        head = path.read_text(encoding="utf-8").split("\nname:")[0]
        assert head.startswith("# "), path
        published = not path.stem.endswith(("_quick", "_digits", "_small"))
        assert ("Published: " in head) == published, path


DIUX_16 = [
    (0, 6, 128, 64, 1.88, 3.76),
    (6, 16, 128, 128, 3.76, 3.76),
    (16, 19, 224, 64, 1.88, 1.88),
    (19, 31, 224, 192, 0.564, 0.564),
    (31, 37, 224, 192, 0.0564, 0.0564),
    (37, 38, 288, 128, 0.0376, 0.0376),
    (38, 50, 288, 128, 0.00376, 0.00376),
]
"""First and last epoch, image size, batch per worker, rate from and to: `sixteen_machines`."""
DIUX_4 = [
    (0, 6, 128, 256, 2.0, 4.0),
    (6, 11, 128, 512, 4.0, 4.0),
    (11, 13, 128, 512, 4.0, 2.0),
    (13, 16, 224, 224, 1.75, 1.75),
    (16, 23, 224, 224, 1.75, 0.175),
    (23, 28, 224, 224, 0.175, 0.0175),
    (28, 30, 288, 128, 0.01, 0.001),
]
"""The same for `four_machines`."""


@pytest.mark.parametrize(("machines", "table"), [(16, DIUX_16), (4, DIUX_4)])
def test_diux_tables(machines: int, table: list[tuple[float, ...]]) -> None:
    plan = plan_of(f"imagenet_resnet50_diux_{machines}", 8 * machines)
    found = []
    for epochs in plan.phases:
        first, last = epochs[0], epochs[-1]
        end = last.lr_at(last.index + 1)  # what the phase leads to
        found.append(
            (
                first.index,
                last.index + 1,
                first.image_size,
                first.batch_per_worker,
                float(f"{first.lr(0):.3g}"),
                float(f"{end:.3g}"),
            )
        )
    assert found == table


@pytest.mark.parametrize("ranks", [8, 16, 32, 64, 128, 256])
def test_goyal_scales_from_256_to_8192(ranks: int) -> None:
    """Goyal et al. 2017, 2.1: the rate is 0.1 per 256 images, whatever the number of workers."""
    plan = plan_of("imagenet_resnet50_goyal_32x8", ranks)
    assert plan.epochs[0].global_batch_size == 32 * ranks
    assert plan.epochs[0].lr(0) == pytest.approx(0.1)
    assert plan.epochs[10].lr(0) == pytest.approx(0.1 * 32 * ranks / 256)


@pytest.mark.parametrize(
    ("epochs", "start", "end"),
    [(16, 11, 13), (24, 17, 20), (32, 23, 27), (40, 29, 34), (56, 41, 48), (88, 65, 76)],
)
def test_ffcv_sizes_and_rates(epochs: int, start: int, end: int) -> None:
    """The published `resolution` settings by ffcv-imagenet's formula, and its rates."""
    plan = plan_of(f"imagenet_resnet50_ffcv_{epochs}", 8)
    sizes, rates = [], []
    for epoch in range(epochs):
        between = np.interp(epoch, [start, end], [160, 192])
        sizes.append(int(np.round(between / 32)) * 32)
        rates.append(1.7 * np.interp(epoch, [0, 2, epochs], [1e-4, 1, 0]))
    assert [epoch.image_size for epoch in plan.epochs] == sizes
    assert [epoch.lr(0) for epoch in plan.epochs] == pytest.approx(rates)
    assert {epoch.val_image_size for epoch in plan.epochs} == {256}


@pytest.mark.parametrize("epochs", [90, 250])
def test_nvidia_rates(epochs: int) -> None:
    """2.048 at 2048 after 8 epochs, then half a cosine over the rest; the same in a whole epoch."""
    plan = plan_of(f"imagenet_resnet50_nvidia_{epochs}", 8)
    times = np.arange(epochs)
    after = 1.024 * (1 + np.cos(np.pi * (times - 8) / (epochs - 8)))
    expected = np.where(times < 8, 2.048 * (times + 1) / 8, after)
    assert [epoch.lr(0) for epoch in plan.epochs] == pytest.approx(expected.tolist())
    assert [epoch.lr(epoch.steps - 1) for epoch in plan.epochs] == pytest.approx(expected.tolist())


def test_nfnet_rates() -> None:
    """0.1 · 4096 / 256 = 1.6 after 5 epochs from 0, then half a cosine."""
    plan = plan_of("imagenet_nfnet_f0", 128)
    found = [plan.epochs[t].lr(0) for t in (0, 1, 5, 359)]
    expected = [0, 0.32, 1.6, 0.8 * (1 + np.cos(np.pi * 354 / 355))]
    assert found == pytest.approx(expected, rel=1e-6)


def test_fastest_cifar_rates() -> None:
    """airbench94 gives decoupled rate and decay, for a sum over 1024 images and one momentum."""
    cfg = load_config(CONFIGS / "cifar10_fast_gpu.yaml")
    scale = 1 + 1 / (1 - cfg.optimizer.momentum)
    plan = make_plan(cfg, 1)
    peak = max(epoch.lr(i) for epoch in plan.epochs for i in range(epoch.steps))
    assert peak == pytest.approx(11.5 / scale, rel=0.01)
    # A step shrinks the weights by lr · weight_decay; there by 0.0153 / scale.
    assert cfg.lr.base * cfg.optimizer.weight_decay == pytest.approx(0.0153 / scale, rel=0.01)
    assert plan.epochs[0].lr(0) / cfg.lr.base == pytest.approx(0.2)
