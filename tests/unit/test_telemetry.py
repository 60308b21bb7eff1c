"""Meters, JSON lines and console."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from hvdtrain.comm import Solo
from hvdtrain.errors import ResourceError
from hvdtrain.telemetry.console import Plain, eval_text, train_text
from hvdtrain.telemetry.meter import Meter
from hvdtrain.telemetry.sinks import JsonLines


def test_meter_with_a_hand_wound_clock() -> None:
    now = [100.0]
    meter = Meter(torch.device("cpu"), clock=lambda: now[0])
    meter.start(5.0, 1.0)
    for loss, top1, top5, count in [(8.0, 1, 3, 4), (6.0, 2, 4, 4)]:
        meter.add(torch.tensor([loss, top1, top5, count]))
    now[0] += 2.0
    more = torch.tensor([7.0, 0.5]).double()
    values, stop, rest = meter.drain(Solo(), 5.5, 1.2, False, (3, 1), more)
    assert rest == [7.0, 0.5]
    assert not stop
    assert values == pytest.approx(
        {
            "loss": 14 / 8,
            "top1": 3 / 8,
            "top5": 7 / 8,
            "samples": 8,
            "seconds": 2.0,
            "images_per_second": 4.0,
            "step_seconds": 1.0,
            "data_wait_ratio": 0.25,
            "comm_wait_ratio": 0.1,
            "bad_samples": 3,
            "bad_unlisted": 1,
        }
    )
    meter.add(torch.tensor([1.0, 0, 0, 2]))
    now[0] += 1.0
    values, stop, rest = meter.drain(Solo(), 5.5, 1.2, True, (0, 0), more[:0])
    assert rest == []
    assert stop
    assert values["samples"] == 2
    assert values["data_wait_ratio"] == 0


def test_json_lines(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    for text in ("one", "two"):
        sink = JsonLines(path)
        sink.write("note", {"text": text})
        sink.close()
    events = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(event["kind"], event["text"]) for event in events] == [
        ("note", "one"),
        ("note", "two"),
    ]
    with pytest.raises(ResourceError, match="cannot be written: Is a directory"):
        JsonLines(tmp_path)


TRAIN = {
    "epoch": 1.5,
    "epochs": 3,
    "image_size": 128,
    "loss": 2.5,
    "top1": 0.25,
    "lr": 0.1,
    "images_per_second": 1234.5,
    "efficiency": 0.93,
    "data_wait_ratio": 0.2,
}


def test_plain_console(capsys: pytest.CaptureFixture[str]) -> None:
    assert train_text(TRAIN) == (
        "epoch   1.50/3  128 px  loss 2.5000  top-1 0.2500  lr 0.1  1,234 images/s"
        "  efficiency 93%  waits for data 20%"
    )
    assert "efficiency" not in train_text({**TRAIN, "efficiency": None})
    assert "  noise scale 1,310  " in train_text({**TRAIN, "gradient_noise_scale": 1310.4})
    plain = Plain()
    plain.write("train", TRAIN)
    plain.write("train", TRAIN)  # too soon after the first
    plain.write("eval", {"epoch": 2.0, "images": 50000, "top1": 0.5, "top5": 0.9, "loss": 1.5})
    plain.write("note", {"text": "resumed"})
    out = capsys.readouterr().out.splitlines()
    assert len(out) == 3
    assert out[1] == eval_text(
        {"epoch": 2.0, "images": 50000, "top1": 0.5, "top5": 0.9, "loss": 1.5}
    )
    assert "50,000 images: top-1 0.5000" in out[1]
    assert out[2] == "resumed"
