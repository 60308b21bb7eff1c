"""A number that tells whether tensors are equal to the bit on all ranks, computed where they are."""

from __future__ import annotations

from collections.abc import Iterable

import torch

ROW = 64
"""Words of 8 bytes that are first added up."""
SMALL = 2**14
"""Words up to which tensors are joined: many small ones would each cost several kernels."""
_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_ODD = (-0x61C8864680B583EB, -0x40A7B892E31B1A47, -0x6B2FB644ECCEEE15)
"""Multipliers of splitmix64 as signed numbers. Source: Steele et al. 2014, doi:10.1145/2660193.2660195."""


@torch.no_grad()
def digest(tensors: Iterable[torch.Tensor]) -> torch.Tensor:
    """A 64-bit digest of the bits of all tensors in their order and memory layout, int64 scalar on
    their device.

    One changed bit always changes it: it changes a sum of `ROW` words modulo 2^64 by a power of two,
    the mixing of each sum is invertible, and only one of the mixed sums changes. Other changes go
    unnoticed with a probability of about 2^-64. It is the same on every kind of device.
    """
    large: list[torch.Tensor] = []
    small: list[torch.Tensor] = []
    for tensor in tensors:
        whole, rest = _words(tensor)
        (small if whole.numel() < SMALL else large).append(whole)
        small.append(rest)
    joined = [torch.cat(small)] if small else []
    sums = [total for words in (*large, *joined) for total in _row_sums(words)]
    return _mixed(torch.cat(sums)).sum() if sums else torch.zeros((), dtype=torch.int64)


def _words(tensor: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The bits as int64 words, and the elements that fill no word, as int64 each."""
    flat, integer = _in_memory_order(tensor), _INTEGERS[tensor.element_size()]
    per_word = 8 // tensor.element_size()
    if flat.storage_offset() % per_word:
        return flat[:0].view(integer).long(), flat.view(integer).long()
    whole = flat.numel() // per_word * per_word
    return flat[:whole].view(torch.int64), flat[whole:].view(integer).long()


def _in_memory_order(tensor: torch.Tensor) -> torch.Tensor:
    """One-dimensional; a view if the memory has no gaps, as of channels_last tensors."""
    tensor = tensor.detach()
    dense = tensor.is_contiguous() or (
        tensor.ndim == 4 and tensor.is_contiguous(memory_format=torch.channels_last)
    )
    if not dense:
        tensor = tensor.contiguous()
    return tensor.as_strided((tensor.numel(),), (1,), tensor.storage_offset())


def _row_sums(words: torch.Tensor) -> list[torch.Tensor]:
    full = words.numel() // ROW * ROW
    return [words[:full].view(-1, ROW).sum(1), words[full:].sum()[None]]


def _mixed(sums: torch.Tensor) -> torch.Tensor:
    """Each sum, with its place, mixed to a number that looks random; int64 arithmetic wraps."""
    mixed = torch.arange(1, len(sums) + 1, device=sums.device).mul_(_ODD[0]).add_(sums)
    for shift, odd in ((30, _ODD[1]), (27, _ODD[2])):
        mixed = (mixed ^ ((mixed >> shift) & (2 ** (64 - shift) - 1))) * odd
    return mixed ^ ((mixed >> 31) & (2**33 - 1))
