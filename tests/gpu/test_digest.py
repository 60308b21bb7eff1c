"""The digest of a state is the same on a GPU and on a CPU."""

from __future__ import annotations

import pytest
import torch

from hvdtrain.engine.digest import SMALL, digest


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_device_makes_no_difference(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = ((7, 3), (), (8, 3, 5, 5), (3 * SMALL + 1,))
    tensors = [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]
    tensors[2] = tensors[2].to(memory_format=torch.channels_last)
    there = [tensor.cuda() for tensor in tensors]
    assert digest(there).item() == digest(tensors).item()
    there[3].view(torch.int16)[12345] ^= 1
    assert digest(there).item() != digest(tensors).item()
