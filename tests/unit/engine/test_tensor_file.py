"""Files of tensors have the bytes that the library would write."""

from __future__ import annotations

import hashlib
import io

import pytest
import safetensors.torch
import torch

from hvdtrain.engine.tensor_file import DTYPES, write_tensors


def written(tensors: dict[str, torch.Tensor]) -> bytes:
    file = io.BytesIO()
    digest, size = write_tensors(file, tensors)
    data = file.getvalue()
    assert (digest, size) == (hashlib.sha256(data).hexdigest(), len(data))
    return data


@pytest.mark.parametrize("count", range(9))
def test_the_same_bytes_for_every_type_and_any_length_of_the_header(count: int) -> None:
    tensors = {
        f'{"x" * count}{name}/é"\\{dtype}': torch.randint(0, 2, (2, 3)).to(dtype)
        for dtype in DTYPES
        for name in ("b", "B", "a.10", "a.9")
    }
    assert written(tensors) == safetensors.torch.save(tensors)


def test_the_same_bytes_for_every_shape_and_layout() -> None:
    generator = torch.Generator().manual_seed(0)
    tensors = {
        "scalar": torch.tensor(3),
        "none": torch.empty(0, 4),
        "one": torch.rand(1, generator=generator),
        "last": torch.rand(4, 3, 5, 2, generator=generator).to(memory_format=torch.channels_last),
        "turned": torch.rand(4, 3, generator=generator).T,
        "part": torch.rand(9, generator=generator)[2:7:2],
        "weight": torch.nn.Parameter(torch.rand(2, 2)),
    }
    plain = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    assert written(tensors) == safetensors.torch.save(plain)
    assert written({}) == safetensors.torch.save({})


def test_a_type_that_is_not_in_the_table() -> None:
    tensors = {"a": torch.zeros(3, dtype=torch.complex64), "b": torch.ones(2)}
    odd = {**tensors, "c": torch.ones(8).to(torch.float8_e8m0fnu)}
    assert written(odd) == safetensors.torch.save(odd)
