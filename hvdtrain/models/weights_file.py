"""Tells by its content what a file or folder of weights is, and reads it; nothing in it is run."""

from __future__ import annotations

import io
import json
import os
import re
import stat
import zipfile
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from hvdtrain.checkpoint_files import EMA_FILE, META, MODEL_FILE, list_checkpoints, verify
from hvdtrain.errors import CheckpointError
from hvdtrain.models.weights_names import listed
from hvdtrain.models.weights_pickle import load_torch

AGAIN = "copy or download it again"
MAX_HEADER_BYTES = 100_000_000
"""Bound of the safetensors library itself."""
MAX_INDEX_BYTES = 2**26
MAX_SHARDS = 10_000
WHOLE_FILES = (
    *("model.safetensors", "model.safetensors.index.json"),
    *("pytorch_model.bin", "pytorch_model.bin.index.json"),
)
"""Names in a folder of Hugging Face, the preferred first."""
ENDINGS = (".safetensors", ".pt", ".pth", ".bin", ".ckpt", ".tar", ".pkl", ".npz")

FOREIGN = (
    (rb"version https://git-lfs", "a git-lfs pointer, not the weights: run git lfs pull in its folder"),
    (rb"(?i)\s*<(!doctype|html|head|\?xml|!--)", f"a web page, not weights: {AGAIN}"),
    (rb"\x1f\x8b", "compressed with gzip: unpack it first"),
    (rb"BZh[1-9]", "compressed with bzip2: unpack it first"),
    (rb"\xfd7zXZ", "compressed with xz: unpack it first"),
    (rb"\x28\xb5\x2f\xfd", "compressed with zstd: unpack it first"),
    (rb"7z\xbc\xaf|Rar!", "a packed archive: unpack it first"),
    (rb"(?s).{257}ustar", "a tar archive: unpack it, and name the file in it"),
    (rb"\x89HDF", "an HDF5 file (Keras), which is not read: save it as safetensors"),
    (rb"\x93NUMPY", "a single NumPy array, not weights by name"),
    (rb"GGUF|ggml|lmgg", "a file of llama.cpp, not weights of an image classifier"),
    (rb"\xff\xd8\xff|\x89PNG|GIF8", "an image, not weights"),
)  # fmt: skip
"""How files of other kinds begin, and what to say."""


def read_file(path: Path) -> tuple[Any, list[str]]:
    """What the weights file at `path` holds, and notes about which file was taken.

    A run, a checkpoint, and a folder of Hugging Face stand for the weights in them. Raises
    CheckpointError.
    """
    try:
        if path.is_dir():
            file, note = _in_folder(path)
            return _read(file), [note]
        return _read(path), []
    except OSError as error:
        raise CheckpointError(error.strerror or str(error)) from None


def checkpoint_of(path: Path) -> Path | None:
    """The checkpoint that a run, a checkpoint, or a weights file in one stands for; None for others."""
    if not path.is_dir():
        return path.parent if (path.parent / META).is_file() else None
    if (path / META).is_file():
        return path
    found = list_checkpoints(path / "checkpoints")
    return found[0] if found and (found[0] / META).is_file() else None


def _in_folder(path: Path) -> tuple[Path, str]:
    checkpoint = checkpoint_of(path)
    if checkpoint is not None:
        files = verify(checkpoint)["sha256"]
        name = EMA_FILE if EMA_FILE in files else MODEL_FILE
        kind = "averaged weights" if EMA_FILE in files else "weights"
        return checkpoint / name, f"{kind} of the checkpoint {checkpoint.name}"
    for name in WHOLE_FILES:
        if (path / name).is_file():
            return path / name, f"weights from {name}"
    inside = sorted(p.name for p in path.iterdir())
    if ".metadata" in inside:
        raise CheckpointError(
            "a checkpoint of torch.distributed in parts: join them with "
            "python -m torch.distributed.checkpoint.format_utils dcp_to_torch FOLDER FILE"
        )
    weights = [name for name in inside if name.endswith(ENDINGS)]
    has = f"it has {listed(weights)}" if weights else "there are none in it"
    raise CheckpointError(f"a folder, neither a run nor a checkpoint: name a weights file; {has}")


def _read(path: Path) -> Any:
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode):
        raise CheckpointError("not a regular file")
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(512)
    if not head:
        raise CheckpointError(f"an empty file: {AGAIN}")
    for beginning, meaning in FOREIGN:
        if re.match(beginning, head):
            raise CheckpointError(meaning)
    if head[:2] == b"PK":
        _check_zip(path)
        return load_torch(path)
    if re.match(rb"\s*[{\[]", head):
        return _read_index(path)
    if head[8:9] == b"{":
        return _read_safetensors(path, head, size)
    if re.match(rb"\x80[\0-\x0f]", head):
        if path.suffix == ".npz":
            raise CheckpointError(
                "a pickle in spite of its name, as DeepMind's NFNets are: convert it as "
                "docs/reference/models.md says"
            )
        return load_torch(path)
    if not any(head):
        raise CheckpointError(f"begins with zeros, so it was not written to the end: {AGAIN}")
    raise CheckpointError(f"neither a safetensors file nor one of torch.save, or cut off: {AGAIN}")


def _check_zip(path: Path) -> None:
    """Raise CheckpointError unless the zip is a file of torch.save."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError, RuntimeError):
        raise CheckpointError(f"damaged or cut off: a zip without its end: {AGAIN}") from None
    ends = {name.rpartition("/")[2] for name in names}
    if "constants.pkl" in ends:
        raise CheckpointError(
            "a TorchScript program, which is never run: where it was made, save the weights alone "
            "with torch.save(model.state_dict(), FILE)"
        )
    if "data.pkl" in ends:
        return
    if ends and all(name.endswith(".npy") for name in ends):
        raise CheckpointError(
            "NumPy arrays (.npz), which are not read: save them with "
            "safetensors.numpy.save_file(dict(numpy.load(FILE)), 'w.safetensors')"
        )
    inside = [name for name in names if name.endswith(ENDINGS)]
    has = f"it has {listed(inside)}" if inside else f"it has {listed(names) or 'nothing'}"
    raise CheckpointError(f"a zip archive, but none of torch.save: unpack it; {has}")


def _read_safetensors(path: Path, head: bytes, size: int) -> dict[str, Tensor]:
    header = int.from_bytes(head[:8], "little")
    if header > MAX_HEADER_BYTES:
        raise CheckpointError("neither a safetensors file nor one of torch.save")
    if header > size - 8:
        raise CheckpointError(f"cut off: a header of {header:,} bytes in {size:,}: {AGAIN}")
    try:
        return safetensors.torch.load_file(path)
    except OSError:
        raise
    except Exception as error:  # noqa: BLE001 - the library raises several kinds on a broken file
        reason = str(error).strip().split("\n")[0].rpartition(": ")[2][:80]
        raise CheckpointError(f"damaged or cut off ({reason}): {AGAIN}") from None


def _read_index(path: Path) -> dict[str, Tensor]:
    """The tensors of all files that an index names."""
    tensors: dict[str, Tensor] = {}
    for name in shards_of(path):
        shard = path.parent / name
        try:
            content = _read(shard)
        except OSError as error:
            raise CheckpointError(f"{name}, which it names: {error.strerror}") from None
        except CheckpointError as error:
            raise CheckpointError(f"{name}, which it names: {error}") from None
        if not isinstance(content, dict):
            raise CheckpointError(f"{name}, which it names: expected tensors by name")
        tensors |= content
    return tensors


def shards_of(index: Path) -> list[str]:
    """The names of the files that an index names, which lie beside it. Raises CheckpointError."""
    return sorted(set(_weight_map(index).values()))


def _weight_map(path: Path) -> dict[str, str]:
    with path.open("rb") as file:
        data = file.read(MAX_INDEX_BYTES + 1)
    try:
        if len(data) > MAX_INDEX_BYTES:
            raise ValueError
        names = json.load(io.BytesIO(data))["weight_map"]
        files = set(names.values())
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise CheckpointError("text or JSON, neither weights nor an index of them") from None
    plain = all(isinstance(f, str) and f == os.path.basename(f) and f.strip(".") for f in files)  # noqa: PTH119
    if not files or not plain or len(files) > MAX_SHARDS or "\0" in "".join(files):
        raise CheckpointError("its weight_map: expected names of files beside it")
    if any(f.endswith(".json") for f in files):
        raise CheckpointError("its weight_map: names another index")
    return dict(names)
