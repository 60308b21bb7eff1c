"""What `hvdtrain plan` prints, and what it refuses; it imports nothing heavy."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from hvdtrain.cli.main import main
from hvdtrain.config.load import parse_config
from hvdtrain.plan.epochs import make_plan
from hvdtrain.plan.text import plan_dict, plan_text

REPOSITORY = Path(__file__).parents[3]


def test_the_text_shows_what_the_phases_change() -> None:
    cfg = parse_config(
        "model: {name: wrn22, width: 6, pool: concat, blurpool: true, dropout: 0.1}\n"
        "optimizer: {name: lars, agc: 0.02, decay_norms_and_biases: true}\n"
        "train: {ema_decay: 0.999}\n"
        "lr: {warmup: none, schedule: polynomial}\n"
        "phases:\n"
        "  - {epochs: 4, image_size: [32, 96], batch_per_worker: 32, momentum: [0.8, 0.9]}\n"
        "  - {epochs: 2, image_size: 96, batch_per_worker: 32}\n"
    )
    plan = make_plan(cfg, 2, 640)
    text = plan_text(cfg, plan)
    for fact in (
        "32-64 px",  # 32, then 48, 64 and 80, halves to the even multiple of 32
        "wrn22, width 6, concat pooling, blurpool, dropout 0.1",
        "LARS",
        "AGC 0.02, classifier excluded",
        "0.0001 on all parameters",
        "moving average of the weights, decay 0.999",
        "polynomial: (1 - share done)^2",
        "0.8-0.9 by phase",
        "epoch      0  0.025, momentum 0.8",
        "epoch      4  0.0027778 → 0.0027778, momentum 0.9",
    ):
        assert fact in text
    phases = plan_dict(cfg, plan)["phases"]
    assert [phase["image_size_last"] for phase in phases] == [64, 96]
    assert phases[0]["momentum_first"] == 0.8
    assert phases[0]["momentum_last"] == pytest.approx(0.8 + 0.1 * 39 / 40)


def test_the_text_shows_the_rates_of_single_parameters() -> None:
    cfg = parse_config(
        "model: {name: wrn22}\n"
        "optimizer: {name: muon, newton_schulz_steps: 3, normalize_filters: true, share_work: true, "
        "other_rate: 4, shift_rate: 2, classifier_rate: 0.5, other_momentum: 0.8, layer_decay: 0.5, "
        "lookahead: {every: 5, share: [1, 0.25], power: 3}}\n"
        "phases: [{epochs: 1, image_size: 32}]\n"
    )
    text = plan_text(cfg, make_plan(cfg, 2, 640))
    for fact in (
        "optimizer         Muon, Nesterov, 3 Newton-Schulz steps, filters normalized, work shared by the "
        "ranks; norms, biases, classifier: SGD, Nesterov, momentum 0.8\n",
        "other rates       norms and biases × 4, batch-norm shifts × 8, classifier × 0.5; rate × decay ",
        "rates by stage    × 1, 0.5, 0.25, 0.125, 0.0625, from the classifier to the stem\n",
        "slow weights      every 5 updates 1 → 0.25 by (share done)^3 of the way\n",
        "decayed           0.0001 on the classifier; not on convolution and hidden weights, whose norm ",
    ):
        assert fact in text
    plain = plan_text(parse_config("phases: [{epochs: 1}]"), make_plan(cfg, 2, 640))
    assert not any(name in plain for name in ("other rates", "rates by stage", "slow weights"))


@pytest.mark.parametrize(
    ("optimizer", "more", "fact"),
    [
        ("{name: adamw}", "", "betas             0.9, 0.999\n"),
        ("{name: lamb, betas: [0.8, 0.99]}", "", "betas             0.8, 0.99\n"),
        ("{name: adamw}", ", momentum: [0.8, 0.9]", "betas             0.8-0.9 by phase; 0.999\n"),
        ("{name: sgd}", "", "momentum          0.9\n"),
        ("{name: lars, momentum: 0.8}", "", "momentum          0.8\n"),
    ],
)
def test_the_text_names_what_the_optimizer_has(optimizer: str, more: str, fact: str) -> None:
    cfg = parse_config(f"optimizer: {optimizer}\nphases: [{{epochs: 9{more}}}]")
    text = plan_text(cfg, make_plan(cfg, 1, 10**5))
    assert fact in text
    assert ("\nmomentum" in text) == ("momentum" in fact)
    [phase] = plan_dict(cfg, make_plan(cfg, 1, 10**5))["phases"]
    assert ("momentum_first" in phase) == ("momentum_last" in phase) == ("momentum" in fact)
    if "momentum" not in fact:
        second = cfg.optimizer.betas[1]
        assert phase["betas_first"] == [0.8 if "0.8" in fact else 0.9, second]
        assert phase["betas_last"] == [pytest.approx(phase["betas_first"][0], abs=0.1), second]


@pytest.mark.parametrize(
    ("setting", "line"),
    [
        ("model.num_classes=1000", "model.num_classes: the config says 1000, {} has 2"),
        ("data.train_size=1281167", "data.train_size: the config says 1281167, {} has 22"),
        ("model.num_classes=2", None),
        ("data.train_size=22", None),
        ("expected.images=1281167", None),
        ("expected.classes=1000", None),
    ],
)
@pytest.mark.parametrize("command", ["plan", "doctor"])
def test_another_dataset_than_the_config_says(
    command: str,
    setting: str,
    line: str | None,
    small_root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    train = small_root / "train"
    (tmp_path / "c.yaml").write_text(
        "model: {name: resnet8_cifar}\nphases: [{epochs: 1, batch_per_worker: 8}]"
    )
    argv = ["hvdtrain", command, str(tmp_path / "c.yaml"), f"data.train={train}", setting]
    monkeypatch.setattr("sys.argv", argv)
    with pytest.raises(SystemExit) as end:
        main()
    out = capsys.readouterr()
    if line is not None:
        assert end.value.code == (3 if command == "plan" else 1)
        assert line.format(train) in out.out + out.err
    else:
        assert "the config says" not in out.out + out.err


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ("data: {augment: pad_crop}", "pad_crop, flip\n"),
        (
            "data: {augment: pad_crop, crop_padding: 2, padding_mode: zero, flip: alternating}",
            "pad_crop 2 px zero, alternating flip\n",
        ),
        (
            "data: {repeats: 3}\ntrain: {mixup: 0.2, mix_share: batch, mix_partner: random}",
            "random_resized_crop, flip, mixup 0.2, one share a forward pass, random partners\n",
        ),
        (
            "data: {rand_augment: [4, 5], rand_augment_policy: nfnet, rotation: 2, translation: 0.1}",
            "random_resized_crop, flip, RandAugment 4 × 5 nfnet, rotation ±2°, translation ±0.1 of the side\n",
        ),
    ],
)
def test_the_text_names_the_augmentation(settings: str, words: str) -> None:
    cfg = parse_config(f"{settings}\nphases: [{{epochs: 9}}]")
    text = plan_text(cfg, make_plan(cfg, 1, 10**5))
    assert f"augmentation      {words}" in text
    often = "each 3 times in 3 epochs" if "repeats" in settings else "each once"
    assert f"images            100,000 an epoch, {often}\n" in text
    assert "updates           28,125 in 9 epochs" in text


RECIPE = "configs/imagenet_resnet50_goyal_32x8.yaml"


def test_a_published_recipe_takes_another_dataset(
    small_root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(REPOSITORY)
    settings = ["data.val=0.2", "phases.0.batch_per_worker=4"]
    for path, fact in ((f"{small_root}/train", "18 an epoch"), ("not/here", "1,281,167 an epoch")):
        monkeypatch.setattr(
            "sys.argv", ["hvdtrain", "plan", RECIPE, f"data.train={path}", *settings]
        )
        with pytest.raises(SystemExit) as end:
            main()
        assert end.value.code == 0
        out = capsys.readouterr().out
        assert fact in out
        held = "4 images: " if "18" in fact else ""
        assert f"  {held}0.2 of each class of data.train, chosen by seed 0\n" in out


def test_plan_and_help_import_neither_torch_nor_horovod_nor_dali() -> None:
    code = (
        "import sys, hvdtrain.cli.main, hvdtrain.plan.text\n"
        "sys.argv = ['hvdtrain', 'plan', sys.argv[1], '--world-size', '256']\n"
        "try:\n    hvdtrain.cli.main.main()\n"
        "except SystemExit as stop:\n    assert stop.code == 0, stop.code\n"
        "heavy = {'torch', 'horovod', 'nvidia', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    config = "configs/imagenet_resnet50_goyal_32x8.yaml"
    done = subprocess.run(
        [sys.executable, "-c", code, config], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    for fact in ("8192", "batch-norm batch  32", "3.2 → 0.32", "decayed", "1,281,167"):
        assert fact in done.stdout
