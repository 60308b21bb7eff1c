"""The errors of PowerSGD in a checkpoint: loaded as they were, or refused, or what is left of them is told."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from hvdtrain.checkpoint_files import ERRORS_FILE, verify
from hvdtrain.checkpoint_keep import Keep
from hvdtrain.comm.ranks import Solo
from hvdtrain.config.load import parse_config
from hvdtrain.engine.build import init_state
from hvdtrain.engine.calibrate import restored as restored_state
from hvdtrain.engine.checkpoint import contents, metadata, write_checkpoint
from hvdtrain.engine.checkpoint_errors import (
    dropped_errors,
    gather_errors,
    kept_tensors,
    load_factors,
    share_errors,
)
from hvdtrain.engine.step import State, train_step
from hvdtrain.errors import CheckpointError
from tests.step_samples import images

CONFIG = """
model: {{name: resnet8_gn}}
phases: [{{epochs: 1, image_size: 8, batch_per_worker: 4}}]
train: {{channels_last: {last}, precision: fp32}}
comm: {{compression: {compression}, powersgd_rank: {rank}}}
"""


def made(compression: str = "powersgd", rank: int = 2, *, last: bool = False) -> State:
    text = CONFIG.format(compression=compression, rank=rank, last=str(last).lower())
    return init_state(parse_config(text), Solo(), torch.device("cpu"), 7)


def trained(**options: Any) -> State:
    state = made(**options)
    for seed in range(3):
        train_step(state, images(4, seed), 0.1, 0.9)
    return state


def written(state: State, root: Path, errors: dict[str, torch.Tensor] | None = None) -> Path:
    """A checkpoint of `state`, with these errors in place of its own."""
    found = gather_errors(state) if errors is None else errors
    files = contents(state) | ({ERRORS_FILE: found} if found else {})
    return write_checkpoint(files, metadata(state, {}), root / "checkpoints", Keep(9)).path


def restored(state: State, path: Path) -> None:
    share_errors(state, load_factors(state, path, verify(path)))


@pytest.mark.parametrize("last", [False, True])
def test_what_is_loaded_is_what_was_kept(tmp_path: Path, last: bool) -> None:
    """Also in another order of memory."""
    state = trained(last=True)
    path, other = written(state, tmp_path), trained(last=last)
    train_step(other, images(4, 9), 0.1, 0.9)
    restored(other, path)
    mine, theirs = kept_tensors(state), kept_tensors(other)
    assert len(mine) == len(theirs) == 20
    for key, tensor in mine.items():
        assert torch.equal(tensor, theirs[key]), key
        assert tensor.any(), key
    assert dropped_errors(other, path, verify(path)) == ""


def test_a_trial_leaves_errors_as_they_were() -> None:
    """As a test of learning rates, which restores all that training changes."""
    state = trained()
    before = {key: tensor.clone() for key, tensor in kept_tensors(state).items()}
    with restored_state(state):
        train_step(state, images(4, 7), 0.1, 0.9)
        assert not all(torch.equal(before[key], t) for key, t in kept_tensors(state).items())
    assert all(torch.equal(before[key], t) for key, t in kept_tensors(state).items())


def test_another_rank_of_the_approximation(tmp_path: Path) -> None:
    """Errors stay, and factors as far as they go; what is not compressed any more is told."""
    state = trained(rank=4)
    path, kept = written(state, tmp_path), kept_tensors(state)
    less, more = made(rank=2), made(rank=8)
    drawn = {key: tensor.clone() for key, tensor in kept_tensors(more).items()}
    for other in (less, more):
        restored(other, path)
        for key, tensor in kept_tensors(other).items():
            if key in kept and key.endswith("error"):
                assert torch.equal(tensor, kept[key])
            elif key in kept:
                rows = min(len(tensor), len(kept[key]))
                assert torch.equal(tensor[:rows], kept[key][:rows])
                assert other is less or torch.equal(tensor[rows:], drawn[key][rows:])
    lost = len(kept) // 2 - len(drawn) // 2
    text = dropped_errors(more, path, verify(path))
    assert text.endswith(
        f"errors of PowerSGD for {lost} tensors that are not compressed now are dropped"
    )


def test_without_errors_a_run_begins_anew(tmp_path: Path) -> None:
    """As after a rollback to a checkpoint from before the compression was set."""
    path, state = written(trained(compression="none"), tmp_path), trained()
    assert not (path / ERRORS_FILE).exists()
    restored(state, path)
    for (key, tensor), fresh in zip(
        kept_tensors(state).items(), kept_tensors(made()).values(), strict=True
    ):
        assert torch.equal(tensor, fresh), key


def test_a_run_without_compression_says_what_it_drops(tmp_path: Path) -> None:
    path, plain = written(trained(), tmp_path), made("none")
    restored(plain, path)
    assert "for 10 tensors that are not compressed now" in dropped_errors(plain, path, verify(path))


def _short(errors: dict[str, torch.Tensor]) -> None:
    key = next(key for key in errors if key.endswith("/error"))
    errors[key] = errors[key][:, :-1]


def _ranks(errors: dict[str, torch.Tensor]) -> None:
    key = next(key for key in errors if key.endswith("/error"))
    errors[key] = torch.cat([errors[key], errors[key]])


def _half(errors: dict[str, torch.Tensor]) -> None:
    errors.pop(next(key for key in errors if key.endswith("/factor")))


def _stranger(errors: dict[str, torch.Tensor]) -> None:
    errors["\x1bhead.weight/error"] = torch.ones(1, 2, 2)


@pytest.mark.parametrize("spoil", [_short, _ranks, _half, _stranger])
def test_errors_of_another_model_are_refused(
    tmp_path: Path, spoil: Callable[[dict[str, torch.Tensor]], None]
) -> None:
    state = trained()
    errors = {key: tensor.clone() for key, tensor in gather_errors(state).items()}
    spoil(errors)
    path = written(state, tmp_path, errors)
    with pytest.raises(CheckpointError, match=r"made by another model: .* does not fit") as caught:
        load_factors(state, path, verify(path))
    assert str(caught.value).isprintable()


def test_a_file_of_another_kind(tmp_path: Path) -> None:
    state = trained()
    path = written(state, tmp_path)
    (path / ERRORS_FILE).write_bytes(b"\xff" * 99)
    meta = {"sha256": {ERRORS_FILE: ""}}
    with pytest.raises(CheckpointError, match=r"errors.safetensors: not written by hvdtrain"):
        load_factors(state, path, meta)
