"""`hvdtrain predict`: parse, call, print."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Literal

import typer

from hvdtrain.cli.progress import doing
from hvdtrain.errors import DataError, ResourceError
from hvdtrain.streams import print_error_line, say

Model = Annotated[
    Path,
    typer.Argument(
        metavar="MODEL",
        help="Run directory, one of its checkpoints, or a safetensors file of hvdtrain export.",
    ),
]
Device = Annotated[
    str,
    typer.Option(help="auto: the first GPU, or the CPU where there is none. Else cpu, cuda:1, …"),
]


def predict(
    model: Model,
    images: Annotated[
        list[Path],
        typer.Argument(
            metavar="IMAGES...",
            help="Image files, folders with images below them, or lists of images (.csv, .tsv, .txt).",
        ),
    ],
    top: Annotated[int, typer.Option(min=1, help="Classes named for each image.")] = 5,
    form: Annotated[
        Literal["text", "csv", "json"],
        typer.Option("--format", help="Form of the rows; json: one object a line."),
    ] = "text",
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="File for the rows, instead of printing them."),
    ] = None,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also write a page with the images.")
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Images of one forward pass.")] = 32,
    device: Device = "auto",
) -> None:
    """Name what is in images.

    One row an image: its most probable classes with their probabilities. Images are prepared as in the
    evaluations of the run. A file that is no image, or is damaged, has a row with the reason; then the
    exit code is 3.
    """
    with doing("importing torch and DALI"):
        from hvdtrain.inference.classifier import load
        from hvdtrain.inference.contact_sheet import ContactSheet
        from hvdtrain.inference.given_images import find_images
        from hvdtrain.inference.rows import writer
    with doing("loading the network"):
        classifier = load(model, device)
    for warning in classifier.warnings:
        print_error_line(f"hvdtrain: warning: {warning}")
    notes: list[str] = []
    with doing("listing the images"):
        given = find_images(images, notes)
    for note in notes:
        print_error_line(f"hvdtrain: {note}")
    top = min(top, len(classifier.classes))
    head, row = writer(form, top)
    sheet = ContactSheet(classifier) if html is not None else None
    bad = 0
    with _lines(output) as write, doing(f"predicting {len(given):,} images"):
        for line in head:
            write(line)
        for prediction, image in classifier.predict_given(given, top, batch):
            bad += prediction.fault is not None
            write(row(prediction))
            if sheet is not None:
                sheet.add(prediction, image)
    if sheet is not None and html is not None:
        sheet.write(html)
    if bad:
        raise DataError(f"{bad:,} of {len(given):,} images cannot be used: their rows say why")


@contextlib.contextmanager
def _lines(output: Path | None) -> Iterator[Callable[[str], None]]:
    """What writes a line: to standard output, or to a file that is whole or not there."""
    if output is None:
        yield say
        return
    from hvdtrain.files import whole_file

    try:
        with whole_file(output) as file:
            yield lambda line: _write(file, line)
    except OSError as error:
        raise ResourceError(f"{output}: cannot be written: {error.strerror}") from None


def _write(file: object, line: str) -> None:
    file.write(f"{line}\n".encode("utf-8", "surrogateescape"))  # type: ignore[attr-defined]
