"""Meters, JSON lines and console."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from hvdtrain import activity
from hvdtrain.comm.ranks import Solo
from hvdtrain.engine.stopwatch import Stopwatch
from hvdtrain.errors import ResourceError
from hvdtrain.report.text import ABOVE_ONE
from hvdtrain.streams import Output
from hvdtrain.telemetry.console import Plain, eval_text, train_text
from hvdtrain.telemetry.hardware import LinkUse
from hvdtrain.telemetry.meter import BadCounts, Meter
from hvdtrain.telemetry.reports import Note
from hvdtrain.telemetry.sinks import JsonLines
from tests.made_reports import EVAL, train


class Laps(Stopwatch):
    """A stopwatch with given laps."""

    def __init__(self, *laps: float) -> None:
        super().__init__(torch.device("cpu"), keep_laps=True)
        for lap in laps:
            self._add(lap)


def test_meter_with_a_fake_clock() -> None:
    now = [100.0]
    meter = Meter(torch.device("cpu"), clock=lambda: now[0])
    meter.start(5.0)
    sums = [(8.0, 1, 3, 4), (6.0, 2, 4, 4)]
    for one, step_s, data_wait_s in zip(sums, (1.25, 0.5), (5.4, 5.5), strict=True):
        now[0] += step_s
        assert meter.add(torch.tensor(one), data_wait_s) == step_s
    now[0] += 0.25  # until the device is done
    more = torch.tensor([7.0, 0.5]).double()
    interval = meter.drain(Solo(), Laps(9.0, 0.05, 0.15), False, BadCounts(3, 1, 2), more)
    assert interval.more == [[7.0, 0.5]]
    assert not interval.stopping
    assert interval.step_s.tolist() == [[1.25, 0.75]]
    assert interval.data_s.tolist() == pytest.approx(np.array([[0.4, 0.1]]))
    assert interval.wait_s.tolist() == [[0.05, 0.15]]  # an earlier lap does not count
    assert interval.link_bytes_per_s is None
    assert interval.bad == (3, 1, 2)
    assert interval.measured.values() == pytest.approx(
        {
            "loss": 14 / 8,
            "top1": 3 / 8,
            "top5": 7 / 8,
            "samples": 8,
            "seconds": 2.0,
            "images_per_second": 4.0,
            "step_seconds": 1.0,
            "network_bytes_per_second": 0.0,
            "data_wait_ratio": 0.25,
            "comm_wait_ratio": 0.1,
            "bad_samples": 3,
            "read_retries": 2,
        }
    )
    now[0] += 1.0
    meter.add(torch.tensor([1.0, 0, 0, 2]), 5.5)
    interval = meter.drain(Solo(), Laps(), True, BadCounts(0, 0), more[:0])
    assert interval.more == [[]]
    assert interval.stopping
    assert interval.measured.samples == 2
    assert interval.measured.data_wait_ratio == 0
    assert interval.wait_s.tolist() == [[0.0]]


def test_the_busiest_interface_is_the_one_in_use(tmp_path: Path) -> None:
    def interface(name: str, sent: int, kind: int = 1, speed: str = "25000") -> None:
        folder = tmp_path / name
        (folder / "statistics").mkdir(parents=True, exist_ok=True)
        (folder / "statistics/tx_bytes").write_text(f"{sent}\n")
        (folder / "type").write_text(f"{kind}\n")
        (folder / "speed").write_text(f"{speed}\n")

    interface("eth0", 1000)
    interface("lo", 0, kind=772)
    interface("wlan0", 5, speed="-1")
    (tmp_path / "snmp").write_text("Tcp: OutSegs RetransSegs\nTcp: 1000 10\n")
    use = LinkUse(tmp_path, tmp_path / "snmp")
    interface("eth0", 51000)
    interface("lo", 10**9, kind=772)
    (tmp_path / "snmp").write_text("Tcp: OutSegs RetransSegs\nTcp: 3000 110\n")
    assert use.take() == (50000, 25e9 / 8, 0.05)
    interface("wlan0", 905, speed="-1")
    assert use.take() == (900, 0, 0)
    (tmp_path / "snmp").unlink()
    assert use.take() == (0, 0, 0)
    now = [0.0]
    meter = Meter(torch.device("cpu"), use, clock=lambda: now[0])
    interface("eth0", 71000)
    now[0] = 2.0
    meter.add(torch.zeros(4), 0.0)
    interval = meter.drain(Solo(), Laps(), False, BadCounts(0, 0), torch.zeros(0).double())
    assert interval.link_bytes_per_s == 25e9 / 8
    assert interval.measured.network_bytes_per_second == 10000


def test_json_lines(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    for text in ("one", "two"):
        sink = JsonLines(path, print)
        sink.write(Note(text))
        sink.close()
    events = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(event["kind"], event["text"]) for event in events] == [
        ("note", "one"),
        ("note", "two"),
    ]
    with pytest.raises(ResourceError, match="cannot be written: Is a directory"):
        JsonLines(tmp_path, print)


def test_plain_console(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    quiet = {"gradient_noise_scale": None, "cause": None, "straggler": None}
    well = train(**quiet, data_wait_ratio=0.2)
    assert train_text(well) == (
        "epoch   1.50/3  5 min 12 s left  phase 2  128 px  loss 2.5000  top-1 0.2500  lr 0.1"
        "  1,234 images/s  efficiency 93%  waits for data 20%"
    )
    assert "efficiency" not in train_text(train(**quiet, efficiency=None))
    assert "waits for data" not in train_text(train(**quiet, data_wait_ratio=0.04))
    lost = {"cause": "straggling", "straggler": 3, "lost": {"straggling": 0.3}}
    above = train(**quiet, efficiency=1.06)
    assert f"  efficiency 106% ({ABOVE_ONE})" in train_text(above)
    assert "  lost to straggling 30%  by rank 3" in train_text(train(**lost))
    assert "  noise scale 1,310  " in train_text(train(gradient_noise_scale=1310.4))
    plain = Plain(Output(print))
    plain.write(well)
    monkeypatch.setattr(activity, "due_in", lambda: 1.0)  # the next report is in time
    plain.write(well)
    monkeypatch.setattr(activity, "due_in", lambda: 0.0)
    plain.write(train(epoch=2.0))
    plain.write(EVAL)
    plain.write(Note("resumed"))
    out = capsys.readouterr().out.splitlines()
    assert len(out) == 4
    assert [line.split()[1] for line in out[:2]] == ["1.50/3", "2.00/3"]
    assert out[2] == eval_text(EVAL)
    assert "50,000 images: top-1 0.5000" in out[2]
    assert out[3] == "resumed"
