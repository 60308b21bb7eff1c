"""A watched loop of one process: what is counted, what is left out, and what is refused."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import hvdtrain
from hvdtrain.errors import ConfigError, ResourceError
from hvdtrain.report.run import read_run
from tests.launch import free_port

OFF = {"enabled": False}


class Slow:
    """A loader that takes a while for each batch."""

    sampler = "its own"

    def __init__(self, seconds: float, batches: int = 4) -> None:
        self.seconds, self.batches = seconds, batches

    def __len__(self) -> int:
        return self.batches

    def __iter__(self) -> Iterator[torch.Tensor]:
        for _ in range(self.batches):
            time.sleep(self.seconds)
            yield torch.ones(2, 3, 8, 8)


def events(watch: Any, kind: str) -> list[dict[str, Any]]:
    lines = (watch.run_dir / "events.jsonl").read_text().splitlines()
    return [event for event in map(json.loads, lines) if event["kind"] == kind]


def network() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(192, 3))


def test_waits_and_samples_are_counted(tmp_path: Path) -> None:
    model = network()
    watch = hvdtrain.watch.start(
        model, batch_size=2, epochs=2, output=tmp_path, log_every=3, metrics=OFF
    )
    for _epoch in range(2):
        for number, images in enumerate(watch.data(Slow(0.02))):
            loss = model(images).square().mean() * 0 + number
            loss.backward()
            with watch.communication():
                time.sleep(0.03)
            watch.step(loss, samples=1 if number == 3 else None)
        time.sleep(1.0)  # an evaluation, which is not watched
    summary = watch.close()
    first, second, third = events(watch, "train")
    # The first step, of loss 0, does not count.
    assert (first["step"], second["step"], third["step"]) == (4, 7, 8)
    assert first["samples"] == 2 + 2 + 1
    assert first["loss"] == pytest.approx((1 * 2 + 2 * 2 + 3 * 1) / 5)
    assert first["data_wait_ratio"] * first["seconds"] >= 3 * 0.02
    assert first["comm_wait_ratio"] * first["seconds"] >= 3 * 0.03
    assert second["seconds"] < 1.0
    assert (first["epoch"], second["epoch"], third["epoch"]) == (1.0, 1.75, 2.0)
    assert (first["top1"], first["efficiency"], first["image_size"]) == (None, None, 8)
    assert summary["samples"] == 5 + 6 + 1
    assert read_run(watch.run_dir).finished
    assert (watch.run_dir / "report.html").is_file()
    assert watch.close() == {}


def test_a_pause_is_left_out(tmp_path: Path) -> None:
    with hvdtrain.watch.start(
        batch_size=2, output=tmp_path, steps_per_epoch=3, metrics=OFF
    ) as watch:
        watch.step()
        with watch.pause():
            time.sleep(1.0)
        watch.step()
        watch.step()
    [report] = events(watch, "train")
    assert report["seconds"] < 1.0
    assert report["loss"] is None
    assert report["epoch"] == 1.0


def test_the_model_is_left_as_it_was(tmp_path: Path) -> None:
    model = network()
    with hvdtrain.watch.start(
        model, batch_size=2, output=tmp_path, steps_per_epoch=3, metrics=OFF
    ) as watch:
        for _step in range(2):
            model(torch.ones(2, 192)).sum().backward()
            watch.step()
        assert watch._exchange.backward_passes == 2
        assert watch._exchange.clock.forward.total_s > 0
    assert not model._forward_hooks
    assert not model._forward_pre_hooks


def test_an_error_in_the_loop_is_noted(tmp_path: Path) -> None:
    settings = {"port": free_port()}
    watch = hvdtrain.watch.start(batch_size=2, output=tmp_path, steps_per_epoch=3, metrics=settings)
    assert watch.port == settings["port"]
    with pytest.raises(ZeroDivisionError), watch:
        watch.step(1 / 0)
    [note] = events(watch, "note")
    assert note["text"] == "warning: watch: the loop ended by ZeroDivisionError"
    assert not (watch.run_dir / "summary.json").exists()


def test_what_a_loader_has_is_passed_on(tmp_path: Path) -> None:
    with hvdtrain.watch.start(batch_size=2, output=tmp_path, metrics=OFF) as watch:
        data = watch.data(Slow(0.0))
        assert (len(data), data.sampler) == (4, "its own")
        with pytest.raises(AttributeError):
            _ = data.dataset


def test_a_loader_without_length(tmp_path: Path) -> None:
    def endless() -> Iterator[int]:
        while True:
            yield 1

    with hvdtrain.watch.start(batch_size=2, output=tmp_path, metrics=OFF) as watch:
        with pytest.raises(ConfigError, match=r"no length: watch.start needs steps_per_epoch"):
            next(iter(watch.data(endless())))
        with pytest.raises(ConfigError, match=r"without watch.data, watch.start needs"):
            watch.step()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"batch_size": 0}, "batch_size, epochs, log_every and steps_per_epoch: expected at least"),
        ({"single_worker": float("nan")}, "single_worker: expected samples/s above 0, found nan"),
        ({"name": "a/b"}, "name: expected the name of a folder, found 'a/b'"),
        ({"metrics": {"tensorboard": True}}, "metrics: tensorboard: not for a watched loop"),
        ({"metrics": {"port": 1}}, "metrics: port: Input should be greater than"),
        ({"metrics": {"bind": "0.0.0.0"}}, "metrics: : Value error, bind: 0.0.0.0 is open"),
    ],
)
def test_what_is_refused(tmp_path: Path, given: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as refused:
        hvdtrain.watch.start(**{"batch_size": 1, "output": tmp_path, **given})
    assert words in str(refused.value)
    assert not list(tmp_path.iterdir())


def test_an_output_that_cannot_be_written(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(ResourceError, match=r"watch.start: output: .*file"):
        hvdtrain.watch.start(batch_size=1, output=file, metrics=OFF)


def test_ranks_that_have_not_joined(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match=r"started 2 ranks, but torch.distributed is not"):
        hvdtrain.watch.start(batch_size=1, output=tmp_path, metrics=OFF)
