"""A training step on a GPU gives the numbers of the CPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from hvdtrain.comm.ranks import Solo
from hvdtrain.config.load import parse_config
from hvdtrain.engine.build import init_state
from hvdtrain.engine.checkpoint import contents, load_checkpoint, save_checkpoint, verify
from hvdtrain.engine.step import State, train_step
from hvdtrain.run.snapshot_writer import Buffers
from tests.step_samples import Images, images

CONFIG = """
model: {{name: resnet8_gn}}
optimizer: {{name: {optimizer}}}
phases: [{{epochs: 1, image_size: 16, batch_per_worker: 12}}]
train: {{precision: {precision}, ema_decay: 0.9}}
"""


def trained(device: torch.device, optimizer: str, precision: str) -> tuple[State, list[float]]:
    """The state after four steps, and the mean loss of each step."""
    cfg = parse_config(CONFIG.format(optimizer=optimizer, precision=precision))
    state = init_state(cfg, Solo(), device, num_classes=7)
    losses = []
    for step in range(4):
        batch = images(12, step)
        batch = Images(*(t.to(device) for t in (batch.images, batch.labels, batch.weights)))
        sums = train_step(state, batch, 0.01, 0.9, norm=True)
        losses.append(float(sums[0] / sums[3]))
    return state, losses


@pytest.mark.parametrize("optimizer", ["sgd", "lars", "lamb", "adamw", "muon"])
def test_four_steps_in_fp32(gpu: torch.device, optimizer: str) -> None:
    """Losses agree within 1e-4, weights within 1e-3: the two sum in another order."""
    cpu_state, cpu_losses = trained(torch.device("cpu"), optimizer, "fp32")
    gpu_state, gpu_losses = trained(gpu, optimizer, "fp32")
    assert gpu_losses == pytest.approx(cpu_losses, rel=1e-4)
    assert gpu_state.gradient_norm is not None
    assert cpu_state.gradient_norm is not None
    assert float(gpu_state.gradient_norm) == pytest.approx(float(cpu_state.gradient_norm), rel=1e-3)
    assert gpu_state.ema is not None
    assert cpu_state.ema is not None
    for found, expected in (
        (gpu_state.model.state_dict(), cpu_state.model.state_dict()),
        (gpu_state.ema.tensors, cpu_state.ema.tensors),
    ):
        for name, tensor in expected.items():
            assert found[name].device == gpu
            torch.testing.assert_close(found[name].cpu(), tensor, rtol=1e-3, atol=1e-3, msg=name)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_stays_near_fp32(gpu: torch.device, precision: str) -> None:
    """Losses agree within 2 %, and no update is skipped for a gradient that is not finite."""
    _, expected = trained(torch.device("cpu"), "sgd", "fp32")
    state, losses = trained(gpu, "sgd", precision)
    assert losses == pytest.approx(expected, rel=0.02)
    assert state.skipped is None or float(state.skipped) == 0


def test_a_checkpoint_moves_between_cpu_and_gpu(gpu: torch.device, tmp_path: Path) -> None:
    """Weights loaded on the other device are equal to the last bit."""
    for source, target in ((torch.device("cpu"), gpu), (gpu, torch.device("cpu"))):
        saved, _ = trained(source, "sgd", "fp32")
        path = save_checkpoint(saved, tmp_path, 1, {})
        loaded, _ = trained(target, "sgd", "fp32")
        load_checkpoint(loaded, path, verify(path), {})
        assert loaded.progress == saved.progress
        expected = saved.model.state_dict()
        for name, tensor in loaded.model.state_dict().items():
            assert tensor.device.type == target.type
            assert torch.equal(tensor.cpu(), expected[name].cpu()), name


def test_a_copy_of_the_state_is_pinned_and_kept(gpu: torch.device) -> None:
    state, _ = trained(gpu, "sgd", "fp32")
    buffers = Buffers()
    for _ in range(2):
        copies = buffers.copy(contents(state))
        for file, tensors in contents(state).items():
            for name, tensor in tensors.items():
                copy = copies[file][name]
                assert torch.equal(copy, tensor.cpu()), name
                assert copy.is_contiguous()
                assert copy.is_pinned() == tensor.is_cuda
