"""A safetensors file that is hashed and written tensor by tensor.

The library makes one string of all tensors first, in which time no other thread of the process runs
Python, and which takes as much memory again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import BinaryIO

import safetensors.torch
import torch

DTYPES = {
    torch.uint64: "U64",
    torch.int64: "I64",
    torch.float64: "F64",
    torch.complex64: "C64",
    torch.float32: "F32",
    torch.uint32: "U32",
    torch.int32: "I32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.uint16: "U16",
    torch.int16: "I16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""In the order in which the library puts them in a file. Source: safetensors 0.8.0, tensor.rs."""
_RANK = {dtype: rank for rank, dtype in enumerate(DTYPES)}


def write_tensors(file: BinaryIO, tensors: Mapping[str, torch.Tensor]) -> tuple[str, int]:
    """Write what `safetensors.torch.save` gives for tensors on the CPU, in any memory layout.

    Returns the sha256 of the bytes and their number. Raises OSError.
    """
    digest, size = hashlib.sha256(), 0

    def put(data: bytes | memoryview) -> None:
        nonlocal size
        digest.update(data)
        file.write(data)
        size += len(data)

    if not all(tensor.dtype in DTYPES for tensor in tensors.values()):
        put(safetensors.torch.save({name: t.contiguous() for name, t in tensors.items()}))
        return digest.hexdigest(), size
    ordered = sorted(tensors, key=lambda name: (_RANK[tensors[name].dtype], name))
    put(_header({name: tensors[name] for name in ordered}))
    for name in ordered:
        put(_bytes(tensors[name]))
    return digest.hexdigest(), size


def _header(tensors: Mapping[str, torch.Tensor]) -> bytes:
    """Its length in 8 bytes, and names, types, shapes and places as JSON, padded to whole words."""
    places, end = {}, 0
    for name, tensor in tensors.items():
        begin, end = end, end + tensor.numel() * tensor.element_size()
        about = {"dtype": DTYPES[tensor.dtype], "shape": list(tensor.shape)}
        places[name] = {**about, "data_offsets": [begin, end]}
    text = json.dumps(places, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _bytes(tensor: torch.Tensor) -> memoryview:
    return tensor.detach().contiguous().view(-1).view(torch.uint8).numpy().data
