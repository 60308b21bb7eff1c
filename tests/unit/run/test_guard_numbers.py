"""Runs whose numbers are of no use end with one line, and keep what was good."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import safetensors.torch
import torch

from hvdtrain.cli.main import main
from hvdtrain.comm.ranks import Solo
from hvdtrain.config.load import parse_config
from hvdtrain.engine.checkpoint import list_checkpoints
from hvdtrain.errors import TrainingError
from hvdtrain.paths import RunPaths
from hvdtrain.report.events import restarts
from hvdtrain.run.guard.numbers import IN_A_ROW, IN_AN_EPOCH, Skips, check_state
from hvdtrain.telemetry.reports import json_text
from hvdtrain.train import train
from tests.step_samples import network, state_of

PHASE = "{{epochs: {epochs}, image_size: 16, batch_per_worker: {batch}, lr: {lr}}}"
GOOD, HUGE = "0.01", "1e300"


def config(root: Path, *phases: tuple[int, int, str], more: str = "") -> str:
    listed = "".join(f"\n  - {PHASE.format(epochs=e, batch=b, lr=lr)}" for e, b, lr in phases)
    return (
        f"data: {{train: {root}/train, val: {root}/val, augment: pad_crop, decode_threads: 1}}\n"
        "model: {name: resnet8_gn}\nlr: {warmup: none, scaling: none}\n"
        f"metrics: {{enabled: false}}\n{more}\nphases:{listed}"
    )


def events(run: Path, kind: str) -> list[dict]:
    def refuse(text: str) -> None:
        raise AssertionError(f"{text} is not JSON")

    lines = (run / "events.jsonl").read_text().splitlines()
    parsed = [json.loads(line, parse_constant=refuse) for line in lines]
    return [event for event in parsed if event["kind"] == kind]


@pytest.mark.parametrize("evaluated", [True, False])
def test_a_last_update_that_spoils_the_weights(
    evaluated: bool, small_root: Path, tmp_path: Path
) -> None:
    text = config(small_root, (2, 22, GOOD), (1, 22, HUGE))
    cfg = parse_config(text if evaluated else text.replace(f", val: {small_root}/val", ""))
    with pytest.raises(TrainingError) as end:
        train(cfg, Solo(), run_dir=tmp_path / "run")
    last = list_checkpoints(tmp_path / "run/checkpoints")[0]
    assert last.name == "e0002-s0000000000"
    assert f"the last checkpoint is {last}: go on with --resume {tmp_path}/run --accept" in str(
        end.value
    )
    assert ("evaluation is nan" if evaluated else "is not finite after update 3") in str(end.value)
    assert all(
        t.isfinite().all() for t in safetensors.torch.load_file(last / "model.safetensors").values()
    )
    assert not (tmp_path / "run/summary.json").exists()
    assert [event["loss"] is None for event in events(tmp_path / "run", "eval")] == (
        [False, False, True] if evaluated else []
    )


def test_a_run_goes_on_from_the_last_good_state(small_root: Path, tmp_path: Path) -> None:
    text = config(small_root, (2, 22, GOOD), (1, 22, HUGE), (1, 22, GOOD))
    with pytest.raises(TrainingError, match="loss of the evaluation is nan after epoch 3"):
        train(parse_config(text), Solo(), run_dir=tmp_path / "run")
    cfg = parse_config(text.replace(HUGE, "0.001"))
    summary = train(cfg, Solo(), resume=str(tmp_path / "run"), accept_changes=True)
    assert summary["epochs"] == 4
    assert math.isfinite(summary["loss"])


def weights(run: Path, checkpoint: str) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(run / "checkpoints" / checkpoint / "model.safetensors")


@pytest.mark.parametrize("batch", [22, 11, 2])
def test_a_rollback_to_the_last_checkpoint(batch: int, small_root: Path, tmp_path: Path) -> None:
    """Whether the last update of an epoch spoils the weights, or an earlier one; also slow weights."""
    more = "train: {rollbacks: 9, log_every: 2}\ncheckpoint: {keep: 9}"
    if batch == 22:
        more += "\noptimizer: {name: muon, lookahead: {every: 3}}"
    text = config(small_root, (2, batch, GOOD), (1, batch, HUGE), (1, batch, GOOD), more=more)
    summary = train(parse_config(text), Solo(), run_dir=tmp_path / "run")
    steps = 4 * math.ceil(22 / batch)
    assert (summary["epochs"], summary["steps"]) == (4, steps)
    assert math.isfinite(summary["loss"])
    notes = [e["text"] for e in events(tmp_path / "run", "note") if "; rollback " in e["text"]]
    assert len(notes) == (6 if batch == 2 else 1)
    assert (
        f"rollback 1 of 9: these weights go on with the images after step {steps // 2 + 1 + (batch < 22)}"
        in notes[0]
    )
    before, after = (weights(tmp_path / "run", f"e000{n}-s0000000000") for n in (2, 3))
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert restarts(tmp_path / "run/events.jsonl") == (0, 0)  # it is no other attempt


def test_rollbacks_end(small_root: Path, tmp_path: Path) -> None:
    more = "train: {rollbacks: 2, log_every: 1}"
    text = config(small_root, (1, 11, GOOD), (2, 2, HUGE), more=more)
    with pytest.raises(TrainingError) as end:
        train(parse_config(text), Solo(), run_dir=tmp_path / "run")
    assert "the loss is nan at epoch " in str(end.value)
    assert "; first in step 8, with the images " in str(end.value)
    assert str(end.value).endswith(".jpg, after 2 rollbacks")


def test_no_rollback_without_a_checkpoint(small_root: Path, tmp_path: Path) -> None:
    text = config(small_root, (1, 11, HUGE), more="train: {rollbacks: 2, log_every: 1}")
    with pytest.raises(TrainingError, match=r"loss is nan at epoch .*; first in step 2, with the"):
        train(parse_config(text), Solo(), run_dir=tmp_path / "run")


@pytest.mark.parametrize(
    ("batch", "epochs", "which"),
    [
        (2, 2, "all 11 updates of the epoch"),
        (1, 3, "all 22 updates of the epoch"),
        (11, 2, "all 4 updates"),
    ],
)
def test_a_fixed_loss_scale_that_skips_every_update(
    batch: int, epochs: int, which: str, small_root: Path, tmp_path: Path
) -> None:
    more = "train: {precision: fp16, loss_scale: 1.0e+30, log_every: 3}"
    cfg = parse_config(config(small_root, (epochs, batch, GOOD), more=more))
    with pytest.raises(TrainingError) as end:
        train(cfg, Solo(), run_dir=tmp_path / "run")
    assert str(end.value) == (
        f"{which} were skipped, because gradients overflow fp16: train.loss_scale 1e+30 is too "
        "large: lower it, or set it to dynamic"
    )


def test_weights_that_overflow_fp16(small_root: Path, tmp_path: Path) -> None:
    cfg = parse_config(config(small_root, (1, 22, GOOD), more="train: {precision: fp16}"))
    train(parse_config(config(small_root, (1, 22, GOOD))), Solo(), run_dir=tmp_path / "first")
    [path] = list_checkpoints(tmp_path / "first/checkpoints")
    weights = safetensors.torch.load_file(path / "model.safetensors")
    big = {name: t * 1e6 if "stem" in name else t for name, t in weights.items()}
    safetensors.torch.save_file(big, tmp_path / "big.safetensors")
    model = cfg.model.model_copy(update={"weights": str(tmp_path / "big.safetensors")})
    with pytest.raises(
        TrainingError, match=r"before the first update: numbers above 65504 .* bf16"
    ):
        train(cfg.model_copy(update={"model": model}), Solo(), run_dir=tmp_path / "run")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_one_value_that_is_not_finite_is_found(value: float, tmp_path: Path) -> None:
    state = state_of(network())
    check_state(state, RunPaths(tmp_path))
    with torch.no_grad():
        next(state.model.parameters()).view(-1)[-1] = value
    with pytest.raises(
        TrainingError, match=r"^0\.weight \(1 of \d+ tensors of model.safetensors\)"
    ):
        check_state(state, RunPaths(tmp_path))


@pytest.mark.parametrize("static", [1024.0, None])
def test_skips_in_a_row(static: float | None) -> None:
    state = state_of(network())
    state.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    object.__setattr__(state.settings, "static_loss_scale", static)
    skips, total = Skips(), 0

    def report(steps: int, skipped: int) -> None:
        nonlocal total
        total += skipped
        state.skipped = torch.tensor(float(total))
        skips.add(state, steps)

    for _ in range(9):
        report(10, 9)  # one is made now and then
    skips.end_epoch(state, 90)
    skips.end_run(state)
    report(IN_AN_EPOCH - 1, IN_AN_EPOCH - 1)
    skips.end_epoch(state, IN_AN_EPOCH - 1)
    report(1, 1)
    if static is None:
        skips.end_epoch(state, IN_AN_EPOCH)
    else:
        with pytest.raises(TrainingError, match="all 10 updates of the epoch"):
            skips.end_epoch(state, IN_AN_EPOCH)
    with pytest.raises(TrainingError, match=f"the last {IN_A_ROW} updates were skipped"):
        report(IN_A_ROW - IN_AN_EPOCH, IN_A_ROW - IN_AN_EPOCH)


@pytest.mark.parametrize("ratio", ["0.2", "1.0"])
def test_an_interval_of_masked_images_only(ratio: str, small_root: Path, tmp_path: Path) -> None:
    for image in sorted((small_root / "train").rglob("*.jpg")):
        target = tmp_path / "data" / image.relative_to(small_root / "train")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(image.read_bytes())
    broken = sorted((tmp_path / "data").rglob("*.jpg"))[:: 7 if ratio == "0.2" else 1]
    for image in broken:
        image.write_bytes(image.read_bytes()[:100])
    more = "train: {log_every: 1}"
    text = config(small_root, (1, 1, GOOD), more=more).replace(
        f"{small_root}/train", f"{tmp_path}/data"
    )
    text = text.replace(
        "decode_threads: 1", f"decode_threads: 1, on_bad: mask, max_bad_ratio: {ratio}"
    )
    train(parse_config(text), Solo(), run_dir=tmp_path / "run")
    trained = events(tmp_path / "run", "train")
    masked = [event for event in trained if event["samples"] == 0]
    assert len(trained) == 22
    assert len(masked) == len(broken) == sum(event["bad_samples"] for event in trained)
    for event in masked:
        assert [event[key] for key in ("loss", "top1", "top5", "eta_s")] == [None] * 4
    assert all(event["loss"] is not None for event in trained if event["samples"])


def test_large_numbers_whose_sum_overflows_are_finite(tmp_path: Path) -> None:
    state = state_of(network())
    with torch.no_grad():
        next(state.model.parameters()).fill_(3e38)
    check_state(state, RunPaths(tmp_path))
    with torch.no_grad():
        next(state.model.parameters())[-1, -1, -1, -1] = -math.inf
    with pytest.raises(TrainingError, match=r"0\.weight \(1 of 4 tensors"):
        check_state(state, RunPaths(tmp_path))


def test_json_has_null_for_what_is_not_a_number() -> None:
    values = {"a": math.nan, "b": [1.5, math.inf], "c": {"d": -math.inf, "e": "nan", "f": 2}}
    assert json.loads(json_text(values)) == {
        "a": None,
        "b": [1.5, None],
        "c": {"d": None, "e": "nan", "f": 2},
    }


def test_eval_of_weights_that_are_not_finite(
    small_root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Such a checkpoint is not written any more; an older version may have."""
    train(parse_config(config(small_root, (1, 22, GOOD))), Solo(), run_dir=tmp_path / "run")
    monkeypatch.setattr(
        "hvdtrain.engine.evaluate.functional.cross_entropy", lambda x, *_, **__: x[:, 0] * math.nan
    )
    monkeypatch.setattr("sys.argv", ["hvdtrain", "eval", str(tmp_path / "run")])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 7
    assert "the loss of the evaluation is nan after epoch 1" in capsys.readouterr().err
