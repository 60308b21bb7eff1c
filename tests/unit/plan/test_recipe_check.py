"""Each rule of the recipe check warns where it is broken, and not of a published recipe."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from hvdtrain.comm.ranks import Solo
from hvdtrain.config.load import load_config, parse_config
from hvdtrain.plan import recipe_check
from hvdtrain.plan.epochs import make_plan
from hvdtrain.plan.recipe_check import RULES, recipe_warnings
from hvdtrain.run.prepare import prepare

CONFIGS = Path(__file__).parents[3] / "configs"
GOYAL = "imagenet_resnet50_goyal_32x8"
NFNET = "imagenet_nfnet_f0"

BROKEN = [
    ("sgd_beyond_limit", GOYAL, 512, [], "global batch 16384 with plain SGD"),
    (
        "batch_norm_batch_changes",
        GOYAL,
        8,
        ["phases=[{epochs: 45, batch_per_worker: 32}, {epochs: 45, batch_per_worker: 8}]"],
        r"changes between phases \(8, 32\)",
    ),
    ("decay_on_norms", GOYAL, 8, ["optimizer.decay_norms_and_biases=true"], "decay on batch-norm"),
    ("last_gamma_not_zero", GOYAL, 256, ["model.zero_gamma=false"], "starts at 1"),
    (
        "agc_off",
        NFNET,
        128,
        ["optimizer.agc=null", "optimizer.agc_classifier_bias=false"],
        "nfnet_f0 at batch 4096 without adaptive",
    ),
    ("rate_scaled_twice", GOYAL, 256, ["lr.base=3.2"], r"3\.2 at batch 256 is scaled ×32 to 102"),
    (
        "linear_scaling_of_adam",
        GOYAL,
        256,
        ["optimizer.name=adamw", "lr.base=1e-3"],
        "with adamw: adaptive optimizers scale with the square root",
    ),
    ("no_warmup", GOYAL, 256, ["lr.warmup=none"], "scaled ×32 without warmup"),
    ("constant_warmup", GOYAL, 256, ["lr.warmup=constant"], "jumps to a rate ×32"),
    ("short_warmup", GOYAL, 256, ["lr.warmup_epochs=1"], "warmup of 1 epochs to a rate ×32"),
    (
        "warmup_without_effect",
        GOYAL,
        64,
        ["lr.base=0.8", "lr.base_batch=2048"],
        r"rises from lr\.base, 0\.8, which is the rate at batch 2048 already",
    ),
    (
        "momentum_not_corrected",
        GOYAL,
        8,
        ["optimizer.name=lars"],
        "the old rate fades over 10 updates",
    ),
    ("warmup_longer_than_run", GOYAL, 8, ["phases.0.epochs=5", "lr.milestones=[3]"], "whole run"),
    ("turns_beyond_end", GOYAL, 8, ["phases.0.epochs=70"], r"milestones \[80"),
    (
        "rate_of_zero",
        "demo_digits",
        1,
        ["data.train_size=1437", "phases.1.epochs=10"],
        r"the learning rate is 0 in 4 of 16 epochs, from epoch 12 on: .* move lr\.points, or train fewer",
    ),
    (
        "schedule_unused",
        GOYAL,
        8,
        ["phases.0.lr=0.1", "lr.schedule=cosine"],
        "lr.schedule cosine has no effect",
    ),
    (
        "few_updates",
        GOYAL,
        8,
        ["data.train_size=4000", "lr.warmup_epochs=0", "phases.0.epochs=10", "lr.milestones=[5]"],
        "^160 updates in all, at most 16 an epoch, are few: .* use a batch_per_worker of 10 or less, "
        "or 32 epochs or more, or start from model.weights; finetune_small is",
    ),
    ("log_beyond_run", GOYAL, 8, ["train.log_every=1000000"], "than the 450,?450 updates"),
    (
        "much_smoothing",
        GOYAL,
        8,
        ["train.label_smoothing=0.5", "model.num_classes=2"],
        "0.5 leaves 0.75 of the target to the true class",
    ),
    (
        "compiled",
        "imagenet_resnet50_ffcv_16",
        8,
        ["train.compile=whole"],
        "^train.compile whole: every rank compiles 2 times, for each image size and batch, .* after the",
    ),
]


def warnings_of(name: str, ranks: int, overrides: list[str]) -> list[str]:
    cfg = load_config(CONFIGS / f"{name}.yaml", overrides)
    return recipe_warnings(cfg, make_plan(cfg, ranks))


@pytest.mark.parametrize(("rule", "name", "ranks", "overrides", "text"), BROKEN)
def test_a_broken_rule_gives_one_warning(
    rule: str, name: str, ranks: int, overrides: list[str], text: str
) -> None:
    cfg = load_config(CONFIGS / f"{name}.yaml", overrides)
    plan = make_plan(cfg, ranks)
    own = getattr(recipe_check, rule)(cfg, plan)
    assert recipe_warnings(cfg, plan) == [own]
    assert re.search(text, own)


def test_every_rule_is_tested() -> None:
    assert [rule.__name__ for rule in RULES] == [broken[0] for broken in BROKEN]


@pytest.mark.parametrize("ranks", [8, 16, 32, 64, 128, 256])
def test_goyal_gives_no_warning_at_any_of_its_sizes(ranks: int) -> None:
    assert warnings_of(GOYAL, ranks, []) == []


@pytest.mark.parametrize(
    ("name", "ranks"),
    [
        (NFNET, 128),
        ("imagenet_resnet50_nvidia_90", 8),
        ("imagenet_resnet50_nvidia_250", 8),
        ("imagenet_resnet50_ffcv_16", 8),
        ("cifar10_fastai_preact18", 1),
        ("imagenet_resnet50_rsb_a1", 4),
        ("imagenet_resnet50_rsb_a3", 4),
        ("imagenet_resnet50_torchvision_v2", 8),
    ],
)
def test_other_published_recipes_give_no_warning(name: str, ranks: int) -> None:
    assert warnings_of(name, ranks, []) == []


@pytest.mark.parametrize(
    ("name", "ranks"),
    [
        ("cifar10_fast_gpu", 1),
        ("cifar10_fastai_wrn22", 1),
        ("cifar10_fastai_wrn22_8gpu", 8),
        ("cifar10_onecycle", 1),
    ],
)
def test_recipes_whose_source_decays_norms_say_so(name: str, ranks: int) -> None:
    (warning,) = warnings_of(name, ranks, [])
    assert warning.startswith("weight decay on batch-norm scales and shifts")


@pytest.mark.parametrize(
    ("name", "ranks", "overrides"),
    [
        (GOYAL, 512, ["optimizer.name=lars", "lr.schedule=cosine"]),
        (GOYAL, 8, ["model.name=vgg_small", "model.zero_gamma=false", "lr.scaling=none"]),
        (GOYAL, 256, ["optimizer.name=adamw", "lr.base=1e-3", "lr.scaling=sqrt"]),
        (GOYAL, 8, ["optimizer.decay_norms_and_biases=true", "optimizer.weight_decay=0"]),
        (GOYAL, 8, ["model.zero_gamma=false"]),
        (GOYAL, 8, ["lr.warmup=none"]),
        (GOYAL, 64, ["lr.base=1.6", "lr.base_batch=2048", "lr.warmup_start=0"]),
        (NFNET, 8, ["optimizer.agc=null", "optimizer.agc_classifier_bias=false"]),
        (GOYAL, 8, ["phases.0.lr=0.1"]),
    ],
)
def test_no_warning_where_the_rule_does_not_apply(
    name: str, ranks: int, overrides: list[str]
) -> None:
    assert warnings_of(name, ranks, overrides) == []


def test_piecewise_points_and_broken_cycles() -> None:
    def of(lr: str) -> list[str]:
        cfg = parse_config(f"lr: {lr}\nphases: [{{epochs: 10, batch_per_worker: 32}}]")
        return recipe_warnings(cfg, make_plan(cfg, 8, 10**5))

    assert of("{warmup: none, schedule: piecewise, points: [[0, 0.1], [2, 1], [10, 0]]}") == []
    late = of("{warmup: none, schedule: piecewise, points: [[0, 0.1], [2, 1], [12, 0]]}")
    assert late == ["points [12.0] lie beyond the last epoch, 10"]
    assert of("{warmup: none, schedule: cyclical, cycle_epochs: 5}") == []
    assert "after 2.5 cycles" in of("{warmup: none, schedule: cyclical, cycle_epochs: 4}")[0]


@pytest.mark.parametrize(
    ("images", "epochs", "batch", "warned"),
    [
        (1437, 12, 64, False),  # the demo
        (2000, 14, 256, True),  # a recipe for 50,000 images: 8 updates an epoch
        (2000, 14, 32, False),
        (50000, 2, 512, False),
        (50000, 1, 512, True),
        (300, 100, 64, False),
        (300, 99, 64, True),
    ],
)
def test_when_updates_are_few(images: int, epochs: int, batch: int, warned: bool) -> None:
    cfg = parse_config(f"phases: [{{epochs: {epochs}, batch_per_worker: {batch}}}]")
    text = recipe_check.few_updates(cfg, make_plan(cfg, 1, images))
    assert (text is not None) == warned


def test_the_recipe_for_few_images_does_not_name_itself() -> None:
    for name, named in (("other", True), ("finetune_small", False)):
        cfg = parse_config(f"{{name: {name}, phases: [{{epochs: 1, batch_per_worker: 32}}]}}")
        text = recipe_check.few_updates(cfg, make_plan(cfg, 1, 300))
        assert text is not None
        assert ("finetune_small" in text) == named


def test_few_updates_from_weights_are_enough() -> None:
    text = "{{phases: [{{epochs: {}, batch_per_worker: 32}}], model: {{weights: w.pt}}}}"
    enough, few = parse_config(text.format(20)), parse_config(text.format(10))
    assert recipe_check.few_updates(enough, make_plan(enough, 1, 300)) is None
    found = recipe_check.few_updates(few, make_plan(few, 1, 300))
    assert found is not None
    assert "model.weights" not in found


@pytest.mark.parametrize(
    ("smoothing", "classes", "share"),
    [
        (0.49, 2, None),
        (0.5, None, "little more than 0.5 of"),
        (0.9, 2, " 0.55 of"),
        (0.9, 1000, " 0.1 of"),
        (0.99, 10, " 0.11 of"),
    ],
)
def test_what_smoothing_leaves(smoothing: float, classes: int | None, share: str | None) -> None:
    known = "null" if classes is None else classes
    cfg = parse_config(
        f"model: {{num_classes: {known}}}\ntrain: {{label_smoothing: {smoothing}}}\n"
        "phases: [{epochs: 9}]"
    )
    text = recipe_check.much_smoothing(cfg, make_plan(cfg, 1, 10**5))
    assert (text is None) if share is None else (text is not None and share in text)


def test_a_run_reports_its_warnings_first(small_root: Path, tmp_path: Path) -> None:
    cfg = parse_config(
        f"data: {{train: {small_root}/train, augment: pad_crop, decode_threads: 1}}\n"
        "model: {name: resnet8_gn}\nmetrics: {enabled: false}\n"
        "optimizer: {weight_decay: 1.0e-4, decay_norms_and_biases: true}\n"
        "phases: [{epochs: 1, image_size: 16, batch_per_worker: 4}]\n"
    )
    prepare(cfg, Solo(), "auto", tmp_path / "run").close()
    lines = (tmp_path / "run/events.jsonl").read_text().splitlines()
    notes = [event["text"] for event in map(json.loads, lines) if event["kind"] == "note"]
    warnings = recipe_warnings(cfg, make_plan(cfg, 1, 22))
    assert len(warnings) == 5
    assert notes[:5] == [f"warning: {text}" for text in warnings]
