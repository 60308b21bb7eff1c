"""The files of an export in memory, and how each is read again by the program it is for."""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import safetensors.torch
import torch
from torch import nn

from hvdtrain.errors import ConfigError, HvdtrainError, is_out_of_memory
from hvdtrain.inference.description import KEY
from hvdtrain.inference.opened import OpenedModel, open_model
from hvdtrain.models.weights_out import Library, name_there, renamed

Network = Callable[[torch.Tensor], torch.Tensor]
"""Prepared images [N, 3, H, W] → logits [N, classes]."""
INPUT, OUTPUT = "images", "logits"
"""Names in an ONNX file."""
MAX_ONNX_BYTES = 2**31
"""A file of protocol buffers cannot be larger."""


@dataclass(frozen=True)
class Made:
    """The content of a file."""

    content: bytes
    read: Callable[[Path], Network]
    """Reads the file, and gives what it computes."""
    free_size: bool
    """Whether images of any size may be given."""
    notes: list[str]


def make(
    opened: OpenedModel,
    network: nn.Module,
    form: str,
    size: int,
    names: Library | None,
    *,
    free_size: bool = True,
) -> Made:
    """The file of `form` for the `network` of `opened`. Raises ConfigError if it cannot be made."""
    if form == "safetensors":
        return _safetensors(opened, network, names)
    if names is not None:
        raise ConfigError(f"--names {names}: only for --format safetensors; {form} has no names")
    return (_pt2 if form == "pt2" else _onnx)(opened, network, size, free_size)


def _safetensors(opened: OpenedModel, network: nn.Module, names: Library | None) -> Made:
    tensors = {name: tensor.contiguous() for name, tensor in network.state_dict().items()}
    metadata = opened.about.metadata()
    if names is None:
        content = safetensors.torch.save(tensors, metadata)
        return Made(content, _read_ours, _is_free(opened), [])
    theirs = name_there(opened.about.model.name, names)
    library = _import(
        "torchvision.models" if names == "torchvision" else "timm", f"--names {names}"
    )
    metadata |= {"names": names, "architecture": theirs}
    content = safetensors.torch.save(renamed(tensors, opened.about.model.name), metadata)
    note = f"for {names}'s {theirs} with num_classes={opened.about.num_classes}"

    def read(path: Path) -> Network:
        make = library.get_model if names == "torchvision" else library.create_model
        own = {"weights": None} if names == "torchvision" else {"pretrained": False}
        model: nn.Module = make(theirs, num_classes=opened.about.num_classes, **own)
        try:
            model.load_state_dict(safetensors.torch.load_file(path))
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:200]
            raise ConfigError(
                f"--names {names}: this network is not {names}'s {theirs} ({reason}): leave --names out"
            ) from None
        return model.eval()

    return Made(content, read, _is_free(opened), [note])


def _read_ours(path: Path) -> Network:
    return open_model(path, torch.device("cpu")).network


def _is_free(opened: OpenedModel) -> bool:
    """Whether our own networks take other sizes than they were trained at; others may not."""
    return ":" not in opened.about.model.name


def _pt2(opened: OpenedModel, network: nn.Module, size: int, free_size: bool) -> Made:
    program, free_size = _program(network, size, "pt2", free_size)
    file = io.BytesIO()
    metadata = opened.about.metadata()
    with _quiet():
        torch.export.save(program, file, extra_files={KEY: json.dumps(metadata)})

    def read(path: Path) -> Network:
        with path.open("rb") as written, _quiet():
            module = torch.export.load(io.BytesIO(written.read())).module()

        def compute(images: torch.Tensor) -> torch.Tensor:
            try:
                logits: torch.Tensor = module(images)
            except Exception as error:
                if is_out_of_memory(error):
                    raise
                raise HvdtrainError(
                    f"torch cannot run the file: {_one_line(error)}: not written"
                ) from None
            return logits

        return compute

    return Made(file.getvalue(), read, free_size, _size_note(size, free_size))


def _onnx(opened: OpenedModel, network: nn.Module, size: int, free_size: bool) -> Made:
    wanted = "--format onnx"
    onnx, runtime = _import("onnx", wanted), _import("onnxruntime", wanted)
    _import("onnxscript", wanted)
    program, free_size = _program(network, size, "onnx", free_size)
    with _quiet():
        try:
            written = torch.onnx.export(
                program, input_names=[INPUT], output_names=[OUTPUT], dynamo=True, verbose=False
            )
            assert written is not None
            proto = written.model_proto
        except Exception as error:  # noqa: BLE001 - torch raises many kinds
            raise _refusal("onnx", error) from None
    onnx.helper.set_model_props(proto, opened.about.metadata())
    if proto.ByteSize() >= MAX_ONNX_BYTES:
        raise ConfigError(
            "--format onnx: larger than 2 GiB, which a file of ONNX cannot be: use pt2"
        )

    def read(path: Path) -> Network:
        session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

        def compute(images: torch.Tensor) -> torch.Tensor:
            try:
                [logits] = session.run([OUTPUT], {INPUT: images.numpy()})
            except Exception as error:  # noqa: BLE001 - its exceptions have no common base
                reason = " ".join(str(error).split())[:200]
                raise HvdtrainError(
                    f"ONNX Runtime cannot run the file: {reason}: not written"
                ) from None
            return torch.from_numpy(logits)

        return compute

    return Made(proto.SerializeToString(), read, free_size, _size_note(size, free_size))


def _program(
    network: nn.Module, size: int, form: str, free_size: bool
) -> tuple[torch.export.ExportedProgram, bool]:
    """The network as a graph for any batch and, if that can be, any image size."""
    free: Any = torch.export.Dim.DYNAMIC
    example = (torch.zeros(2, 3, size + 32, size),)
    with _quiet():
        try:
            if free_size:
                shapes = ({0: free, 2: free, 3: free},)
                return torch.export.export(network, example, dynamic_shapes=shapes), True
        except Exception as error:
            if is_out_of_memory(error):
                raise
        try:
            square = (torch.zeros(2, 3, size, size),)
            return torch.export.export(network, square, dynamic_shapes=({0: free},)), False
        except Exception as error:  # noqa: BLE001 - torch raises many kinds
            raise _refusal(form, error) from None


def _refusal(form: str, error: Exception) -> Exception:
    if is_out_of_memory(error):
        return error
    reason = " ".join(str(error).split())[:200]
    return ConfigError(
        f"--format {form}: torch cannot export this network: {reason}: use safetensors"
    )


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def _size_note(size: int, free_size: bool) -> list[str]:
    return [] if free_size else [f"the batch is free, the image size is not: {size} px"]


def _import(module: str, option: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except (ImportError, RuntimeError, OSError) as error:  # the last two: binaries of another build
        library = module.partition(".")[0]
        extra = " (or hvdtrain[export])" if library.startswith("onnx") else ""
        raise ConfigError(
            f"{option}: {library} cannot be imported ({error}), so the file cannot be made or verified: "
            f"pip install {library}{extra}"
        ) from None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """A context in which torch's exporters say nothing of their internals."""
    before = logging.root.manager.disable
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(before)
