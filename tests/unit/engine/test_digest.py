"""One changed bit anywhere changes the digest, whatever the type, the size and the layout."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hvdtrain.engine.digest import ROW, SMALL, digest

MASK = 2**64 - 1


def reference(tensors: list[torch.Tensor]) -> int:
    """The same in Python's integers, for contiguous tensors."""
    large, small = [], []
    for tensor in tensors:
        data = tensor.numpy().tobytes()
        size, whole = tensor.element_size(), len(data) // 8 * 8
        words = [int.from_bytes(data[k : k + 8], "little") for k in range(0, whole, 8)]
        rest = [
            int.from_bytes(data[k : k + size], "little", signed=True)
            for k in range(whole, len(data), size)
        ]
        if len(words) < SMALL:
            small += words + rest
        else:
            large.append(words)
            small += rest
    sums = []
    for words in [*large, small]:
        full = len(words) // ROW * ROW
        sums += [sum(words[k : k + ROW]) for k in range(0, full, ROW)] + [sum(words[full:])]
    total = 0
    for place, value in enumerate(sums, start=1):
        mixed = (value + place * 0x9E3779B97F4A7C15) & MASK
        mixed = (mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9 & MASK
        mixed = (mixed ^ (mixed >> 27)) * 0x94D049BB133111EB & MASK
        total += mixed ^ (mixed >> 31)
    return total & MASK


def made(*shapes: tuple[int, ...], dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]


def unsigned(value: torch.Tensor) -> int:
    assert value.dtype == torch.int64
    return int(value.item()) & MASK


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64, torch.int64])
def test_it_is_what_it_says(dtype: torch.dtype) -> None:
    tensors = made((3, 5), (), (200, 7), (2 * SMALL + 3,), (1,), dtype=dtype)
    assert unsigned(digest(tensors)) == reference(tensors)


def flip(tensor: torch.Tensor, bit: int) -> None:
    """Change one bit of the memory, of a contiguous tensor."""
    memory = tensor.view(-1).view(torch.uint8).numpy()
    memory[bit // 8] ^= np.uint8(1 << bit % 8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64, torch.uint8])
def test_every_single_bit_counts(dtype: torch.dtype) -> None:
    tensors = made((7, 11), (3,), (1,), dtype=dtype)
    before = digest(tensors).item()
    for tensor in tensors:
        for bit in range(tensor.numel() * tensor.element_size() * 8):
            flip(tensor, bit)
            assert digest(tensors).item() != before
            flip(tensor, bit)
    assert digest(tensors).item() == before


def test_bits_of_large_tensors_count() -> None:
    tensors = made((2 * SMALL + 5,), (4, 3, 3, 3), (SMALL, 3))
    before = digest(tensors).item()
    random = np.random.default_rng(0)
    for _ in range(200):
        tensor = tensors[random.integers(3)]
        bit = int(random.integers(tensor.numel() * 32))
        flip(tensor, bit)
        assert digest(tensors).item() != before
        flip(tensor, bit)


def test_two_signs_and_an_exchange_count() -> None:
    [tensor] = made((4 * ROW * 2,))
    before = digest([tensor]).item()
    tensor[[1, 2 * ROW + 1]] *= -1
    assert digest([tensor]).item() != before
    tensor[[1, 2 * ROW + 1]] *= -1
    tensor[[0, 2 * ROW]] = tensor[[2 * ROW, 0]]
    assert digest([tensor]).item() != before


def test_any_layout() -> None:
    [images] = made((4, 3, 5, 5))
    last = images.to(memory_format=torch.channels_last)
    flat = images.permute(0, 2, 3, 1).contiguous()
    assert digest([last]).item() == digest([flat]).item()
    assert digest([images[:, :, ::2]]).item() == digest([images[:, :, ::2].contiguous()]).item()
    [row] = made((101,))
    odd = row[1:]  # does not begin at a multiple of eight bytes
    before = digest([odd]).item()
    row[1] = -row[1]
    assert digest([odd]).item() != before
    assert digest([]).item() == digest([]).item()
