"""Settings of the gradient exchange: chosen from measurements, and kept when a run is resumed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from hvdtrain.comm.ranks import Solo
from hvdtrain.config.load import parse_config
from hvdtrain.config.schema import Config
from hvdtrain.errors import ConfigError
from hvdtrain.run import exchange_tuning
from hvdtrain.run.exchange_tuning import Exchange, choose_compression, choose_group_mb, tune


def exchanges(latency_s: float, mb_per_s: float, *, half_s: float = 0.0) -> list[Exchange]:
    """Measurements of a link as T = latency + size / rate; `half_s`: seconds of conversion per MiB."""
    found = []
    for mb in exchange_tuning.SIZES_MB:
        found.append(Exchange(mb, "none", latency_s + mb / mb_per_s))
        if half_s:
            found.append(Exchange(mb, "fp16", latency_s + mb * (0.5 / mb_per_s + half_s)))
    return found


@pytest.mark.parametrize(
    ("latency_s", "mb_per_s", "expected"),
    [
        (0.0, 100, 1),
        (0.001, 100, 2),  # 2 MiB: 95.2 MiB/s of 99.8
        (0.001, 1000, 16),  # 16 MiB: 941 of 985, 8 MiB: 889
        (0.02, 1000, 64),
    ],
)
def test_groups_are_as_small_as_the_link_allows(
    latency_s: float, mb_per_s: float, expected: float
) -> None:
    assert choose_group_mb(exchanges(latency_s, mb_per_s)) == expected


def test_half_precision_only_where_it_saves_time() -> None:
    assert choose_compression(exchanges(0.001, 100, half_s=0.001)) == "fp16"
    assert choose_compression(exchanges(0.001, 100, half_s=0.0045)) == "none"  # 95 % of the time
    assert choose_compression(exchanges(0.001, 100)) == "none"


def config(comm: str) -> Config:
    return parse_config(
        f"{{comm: {comm}, phases: [{{epochs: 1, image_size: 8, batch_per_worker: 1}}]}}"
    )


class Link(Solo):
    """The collectives of two ranks; it counts the sums."""

    size = 2
    sums = 0

    def sum_(self, tensor: torch.Tensor, name: str) -> torch.Tensor:
        self.sums += 1
        return tensor

    def gather(self, row: torch.Tensor, name: str) -> torch.Tensor:
        """The other rank is slower."""
        return torch.stack([row, row + 1.0])

    def gather_text(self, text: str) -> list[str]:
        return [text, text]


def test_a_measurement_ends_when_it_takes_long() -> None:
    found = exchange_tuning.measure(Link(), torch.device("cpu"), halve=True)
    assert [each[:2] for each in found] == [(1.0, "none"), (1.0, "fp16")]
    assert all(1.0 < each.seconds < 2.0 for each in found)


def test_a_choice_is_written_and_kept(tmp_path: Path) -> None:
    cfg = config("{tune: measure, compression: auto}")
    file = tmp_path / "tuning.json"
    first = tune(cfg, Link(), file)
    assert first.config.comm.group_mb == 1.0
    assert "measured in" in first.text
    first.write(file)
    record = json.loads(file.read_text())
    assert (record["world_size"], record["hosts"], len(record["exchanges"])) == (2, 1, 2)
    record |= {"group_mb": 7.0, "compression": "fp16"}
    file.write_text(json.dumps(record))
    link = Link()
    kept = tune(cfg, link, file)
    assert (kept.config.comm.group_mb, kept.config.comm.compression) == (7.0, "fp16")
    assert kept.text.endswith("groups of 7 MiB, compression fp16 (kept from tuning.json)")
    assert link.sums == 0
    kept.write(file)
    assert json.loads(file.read_text()) == record


@pytest.mark.parametrize(
    "change",
    [{"world_size": 3}, {"group_mb": -1.0}, {"group_mb": "8"}, {"compression": "zip"}],
)
def test_a_choice_that_does_not_fit_is_made_again(
    tmp_path: Path, change: dict[str, object]
) -> None:
    file = tmp_path / "tuning.json"
    fitting = {"world_size": 2, "group_mb": 7.0, "compression": "none"}
    file.write_text(json.dumps(fitting | change))
    link = Link()
    assert tune(config("{tune: measure}"), link, file).config.comm.group_mb == 1.0
    assert link.sums > 0


def test_the_config_takes_precedence(tmp_path: Path) -> None:
    file = tmp_path / "tuning.json"
    file.write_text(json.dumps({"world_size": 2, "group_mb": 7.0, "compression": "fp16"}))
    stored = tune(config("{tune: measure, group_mb: 3, compression: none}"), Link(), file)
    assert (stored.config.comm.group_mb, stored.config.comm.compression) == (3.0, "none")
    fixed = tune(config("{compression: fp16}"), Link(), file)
    assert (fixed.config.comm.group_mb, fixed.config.comm.compression) == (16.0, "fp16")
    fixed.write(tmp_path / "none.json")
    assert not (tmp_path / "none.json").exists()
    single = tune(config("{tune: measure, compression: auto}"), Solo(), file)
    assert (single.config.comm.group_mb, single.config.comm.compression) == (16.0, "none")


@pytest.mark.parametrize("compression", ["bf16", "powersgd"])
def test_what_auto_does_not_choose_is_kept_for_the_config_alone(
    tmp_path: Path, compression: str
) -> None:
    file = tmp_path / "tuning.json"
    file.write_text(json.dumps({"world_size": 2, "group_mb": 7.0, "compression": compression}))
    given = tune(config(f"{{tune: measure, compression: {compression}}}"), Link(), file)
    assert (given.config.comm.group_mb, given.config.comm.compression) == (7.0, compression)
    auto = tune(config("{tune: measure, compression: auto}"), Link(), file)
    assert "measured in" in auto.text
    assert auto.config.comm.compression in ("none", "fp16")


def test_auto_needs_a_measurement() -> None:
    with pytest.raises(ConfigError, match="compression: auto needs tune: mea"):
        config("{compression: auto}")
