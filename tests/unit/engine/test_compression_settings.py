"""What comm.compression is refused with, and what it leaves out."""

from __future__ import annotations

import pytest
import torch

from hvdtrain.comm.ranks import Solo
from hvdtrain.config.load import parse_config
from hvdtrain.config.schema import Config
from hvdtrain.engine.build import init_state
from hvdtrain.engine.compression.settings import compression_notes, require_no_loss_scale
from hvdtrain.errors import ConfigError

PHASES = "model: {name: resnet8_gn}\nphases: [{epochs: 1, image_size: 8, batch_per_worker: 4}]\n"


def config(text: str = "comm: {compression: powersgd}") -> Config:
    return parse_config(PHASES + text)


def test_no_loss_scale() -> None:
    """Neither by the config, nor where auto is fp16."""
    line = r"powersgd cannot be had with train\.precision: fp16"
    with pytest.raises(ConfigError, match=line):
        config("train: {precision: fp16}\ncomm: {compression: powersgd}")
    with pytest.raises(ConfigError, match=rf"{line}.*auto is fp16 on this GPU"):
        require_no_loss_scale(config(), torch.float16)
    for autocast in (None, torch.bfloat16):
        require_no_loss_scale(config(), autocast)
    require_no_loss_scale(config("comm: {compression: fp16}"), torch.float16)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("powersgd_rank: 0", r"comm\.powersgd_rank: .*greater than or equal to 1"),
        ("powersgd_rank: 9", r"comm\.powersgd_rank: .*less than or equal to 8"),
        ("powersgdrank: 2", r"unknown key; did you mean powersgd_rank\?"),
        ("rank: 2", r"unknown key; known here: .*powersgd_rank"),
        ("compression: power_sgd", r"should be 'none', 'fp16', .*found 'power_sgd'"),
    ],
)
def test_faults_of_the_config(text: str, line: str) -> None:
    with pytest.raises(ConfigError, match=line):
        config(f"comm: {{{text}}}")


def test_the_noise_scale_is_left_out_and_that_is_told() -> None:
    [note] = compression_notes(config(), 2)
    assert note.startswith("train.noise_scale_every: the gradient noise scale is not measured")
    assert compression_notes(config(), 1) == []  # one rank without accumulation has none anyway
    never = "train: {noise_scale_every: 0}\ncomm: {compression: powersgd}"
    assert compression_notes(config(never), 2) == []
    assert compression_notes(config("comm: {compression: fp16}"), 2) == []
    more = "train: {accumulate: 2}\n"
    for text, due in (("", True), ("comm: {compression: powersgd}", False)):
        state = init_state(config(more + text), Solo(), torch.device("cpu"), 3)
        assert state.noise.due(0) is due
