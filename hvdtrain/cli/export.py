"""`hvdtrain export`: parse, call, print."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import typer

from hvdtrain.cli.predict import Model
from hvdtrain.cli.progress import doing
from hvdtrain.streams import print_error_line, say


def export(
    model: Model,
    form: Annotated[
        Literal["safetensors", "pt2", "onnx"],
        typer.Option(
            "--format",
            help="safetensors: weights, classes and preprocessing. pt2: a program of torch.export. onnx: "
            "for ONNX Runtime and others.",
        ),
    ] = "safetensors",
    names: Annotated[
        Literal["torchvision", "timm"] | None,
        typer.Option(
            help="Name the weights as this library does, if the network is one of its own."
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="File to write. Default: RUN.safetensors, …, in this folder."
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print a JSON object instead of text.")
    ] = False,
) -> None:
    """Write a trained network for other programs.

    The file is read again by the program it is for, and its logits are compared with the network's, before
    it gets its name. If they differ by more than 1e-4, the exit code is 1 and no file is left.
    """
    with doing("importing torch and DALI"):
        import torch

        from hvdtrain.inference.export import export as run_export
        from hvdtrain.inference.opened import open_model
        from hvdtrain.paths import run_root
    with doing("loading the network"):
        opened = open_model(model, torch.device("cpu"))
    for warning in opened.warnings:
        print_error_line(f"hvdtrain: warning: {warning}")
    stem = run_root(model).resolve().name if model.is_dir() else model.stem
    file = output or Path(f"{stem}.{form}")
    with doing(f"exporting to {file}"):
        found = run_export(opened, form, file, names)
    for note in found.notes:
        print_error_line(f"hvdtrain: note: {note}")
    if as_json:
        say(json.dumps({**asdict(found), "path": str(found.path)}))
        return
    images = f", {found.images} validation images among them" if found.images else ""
    count = sum(shape[0] for shape in found.compared)
    say(
        f"{found.path}: {found.size_bytes / 1e6:,.1f} MB; largest difference of a logit "
        f"{found.difference:.1e} ({count} inputs{images})"
    )
