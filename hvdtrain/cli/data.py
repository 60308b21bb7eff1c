"""`hvdtrain data`: pack, scan, index and stage datasets. Parse, call, print."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hvdtrain.cli.job import AsJson
from hvdtrain.cli.progress import counting
from hvdtrain.config.data import Columns
from hvdtrain.config.object_urls import is_url
from hvdtrain.errors import ConfigError, ResourceError

if TYPE_CHECKING:  # they import NumPy
    from pipelines.commands.reports import PackReport, ScanReport, StageReport

data_app = typer.Typer(
    help="Pack, check, index and copy datasets.", no_args_is_help=True, rich_markup_mode=None
)

Threads = Annotated[
    int | None, typer.Option(min=1, help="Number of threads. Default: one per available core.")
]

_DATASET = "A dataset of any kind (docs/how-to/data.md)."

ListColumns = Annotated[
    str | None,
    typer.Option(
        "--columns",
        metavar="PATH,LABEL",
        help="Of a list: the names of its columns with image files and with classes, where they are "
        "not recognised.",
    ),
]


@data_app.command()
def pack(
    src: Annotated[str, typer.Argument(metavar="SRC", help=_DATASET)],
    dst: Annotated[
        str,
        typer.Argument(
            metavar="DST", help="Folder to write: new, empty, or partly packed by an earlier call."
        ),
    ],
    short_side: Annotated[
        str,
        typer.Option(
            metavar="SIDES",
            help="Copies to make: short sides in pixels, or orig for the unchanged files; for "
            "example 160,256,orig.",
        ),
    ] = "orig",
    quality: Annotated[
        int, typer.Option(min=1, max=100, help="JPEG quality of resized copies.")
    ] = 92,
    shard_images: Annotated[
        int, typer.Option(min=1, help="Number of images in each tar file.")
    ] = 4096,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Leave out images that cannot be decoded.")
    ] = False,
    shuffle: Annotated[
        bool,
        typer.Option(
            "--shuffle",
            help="Mix the classes in the shards; recommended for data.shuffle=shards.",
        ),
    ] = False,
    columns: ListColumns = None,
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Pack a dataset into tar shards with checksums.

    In one or several resolutions: each training phase then reads the smallest copy that is large
    enough for its image size. SRC is not changed. After an interruption the same command continues
    where it stopped.
    """
    from pipelines.commands.pack import pack as run_packing
    from pipelines.commands.pack_options import PackOptions, parse_short_sides

    try:
        sides = parse_short_sides(short_side)
    except ValueError as error:
        raise ConfigError(f"--short-side {short_side}: {error}") from None
    options = PackOptions(sides, quality, shard_images, threads or _cores(), skip_bad, shuffle)
    with counting("packing", "images") as progress:
        report = run_packing(src, dst, options, progress, _columns(columns))
    _tell_retries()
    typer.echo(json.dumps(asdict(report)) if as_json else _pack_text(report))


@data_app.command()
def scan(
    path: Annotated[str, typer.Argument(metavar="PATH", help=_DATASET)],
    output: Annotated[
        Path | None,
        typer.Option(
            help="Manifest to write. Default: .hvdtrain-scan.npz in the folder; training finds it "
            "there and checks every image against it. If the folder is read-only: in this one."
        ),
    ] = None,
    columns: ListColumns = None,
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Check all images of a dataset and write a manifest.

    Decodes every image, and counts sizes, formats, classes and duplicates. Measures mean and standard
    deviation of the colours, for data.mean and data.std. Bad images are listed with the reason; then
    the exit code is 3.
    """
    from pipelines.commands.scan import scan as run_scan

    with counting("scanning", "images") as progress:
        report = run_scan(
            path, output, threads or _cores(), progress, columns=_columns(columns), tell=_tell
        )
    _tell_retries()
    typer.echo(json.dumps(asdict(report)) if as_json else _scan_text(report))
    if report.manifest_fault is not None:
        raise ResourceError(f"--output: {report.manifest_fault}; name another file")
    if report.bad:
        raise typer.Exit(3)


@data_app.command()
def index(
    path: Annotated[
        str, typer.Argument(metavar="SHARDS", help="Tar shards: a folder, a file, or a pattern.")
    ],
    as_json: AsJson = False,
) -> None:
    """Write an index of existing tar shards.

    With it training starts without reading the headers of all shards. The shards are not changed.
    Datasets made by data pack already have an index.
    """
    from pipelines.sources.tar import write_index

    with counting("reading headers", "shards") as progress:
        file, shards, images, left_out = write_index(path, progress)
    if as_json:
        counts = {"shards": shards, "images": images, "left_out": left_out.counts}
        typer.echo(json.dumps({"index": str(file), **counts}))
        return
    typer.echo(f"{path}: {images:,} images in {shards:,} shards\n  index  {file}")
    if left_out:
        typer.echo(f"  {left_out.text()}")


@data_app.command()
def stage(
    src: Annotated[
        str,
        typer.Argument(
            metavar="SRC",
            help="A packed dataset, or any other folder; or the URL (http, https, s3, gs) of a packed "
            "dataset or of tar shards.",
        ),
    ],
    dst: Annotated[str, typer.Argument(metavar="DST", help="Folder on a local disk.")],
    copies: Annotated[
        str | None,
        typer.Option(
            metavar="NAMES", help="Copies of a packed dataset, for example 160,256. Default: all."
        ),
    ] = None,
    delete: Annotated[
        bool,
        typer.Option(
            "--delete",
            help="Delete from DST what SRC does not have (any more). Default: only tell.",
        ),
    ] = False,
    threads: Annotated[int, typer.Option(min=1, help="Number of threads.")] = 4,
    as_json: AsJson = False,
) -> None:
    """Copy a dataset to a local disk.

    Every file is verified by its checksum. Files that are already there and intact are not copied
    again. Links are followed.
    """
    from pipelines.commands.stage import stage as from_disk
    from pipelines.commands.stage_remote import stage as from_server

    names = [name.strip() for name in copies.split(",")] if copies else None
    run_staging = from_server if is_url(src) else from_disk
    with counting("staging", "bytes") as progress:
        report = run_staging(
            src, dst, copies=names, threads=threads, delete=delete, progress=progress
        )
    _tell_retries()
    typer.echo(json.dumps(asdict(report)) if as_json else _stage_text(report))


def _columns(names: str | None) -> Columns | None:
    """The two columns that `--columns` names."""
    if names is None:
        return None
    path, comma, label = (part.strip() for part in names.partition(","))
    if not path or not comma or not label:
        raise ConfigError(f"--columns {names}: expected PATH,LABEL, the names of two columns")
    return Columns(path=path, label=label)


def _tell(line: str) -> None:
    """One line that cannot wait for the report."""
    typer.echo(f"hvdtrain: note: {line}", err=True)


def _tell_retries() -> None:
    """Name the reads that failed and were made again."""
    from pipelines.sources.retries import RETRIES

    if (retried := RETRIES.take()).count:
        shown = ", ".join(
            name if name.isprintable() else repr(name)[1:-1] for name in retried.first
        )
        _tell(f"reads failed and were tried again ({retried.count}): {shown}")


def _cores() -> int:
    return len(os.sched_getaffinity(0))


def _pack_text(report: PackReport) -> str:
    from pipelines.sources.left_out import printable

    lines = [f"{report.path}: {report.images:,} images of {report.classes:,} classes"]
    for name, copy in report.copies.items():
        each = f"{copy.bytes_per_image / 1e3:6.1f} kB an image"
        lines.append(f"  {name:<6} {copy.size_bytes / 1e9:10.3f} GB of shards  {each}")
    lines += [f"  left out: {printable(bad.name)}: {bad.reason}" for bad in report.skipped]
    lines += [f"  {report.left_out.text()}"] if report.left_out else []
    return "\n".join(lines)


def _scan_text(report: ScanReport) -> str:
    from pipelines.sources.left_out import printable

    counts, sides = report.class_counts, report.short_side
    classes = (
        f"{len(counts):,} classes ({min(counts.values()):,} to {max(counts.values()):,} in a class)"
        if counts
        else "no classes (to train on them, put them into one folder per class, or write a list)"
    )
    lines = [
        f"{printable(report.path)}: {report.images:,} images of {classes}, "
        f"{report.size_bytes / 1e9:.3f} GB",
        f"  short side  {sides.min} to {sides.max} px, median {sides.median}",
        "  formats     " + ", ".join(f"{k} {v:,}" for k, v in report.modes.items()),
        f"  duplicates  {sum(len(d.names) - 1 for d in report.duplicates):,}"
        f" ({report.conflicts} sets with different labels)",
        f"  bad         {len(report.bad):,}",
        *(f"    {printable(bad.name)}: {printable(bad.reason)}" for bad in report.bad),
        f"  manifest    {report.manifest or 'none: only a dataset with labels is checked against one'}",
        *([f"  {report.left_out.text()}"] if report.left_out else []),
        *_channels_text(report),
    ]
    return "\n".join(lines)


def _channels_text(report: ScanReport) -> list[str]:
    """Lines to paste into the section `data` of a config."""
    channels = report.channels
    if channels is None:
        return []
    whole = channels.images == report.images - len(report.bad)
    drawn = "all" if whole else "drawn at random:"
    lines = [f"  colours     of {drawn} {channels.images:,} good images, for `data` in a config:"]
    for key, values in (("mean", channels.mean), ("std", channels.std)):
        lines.append(f"  {key}: [{', '.join(f'{value:.4f}' for value in values)}]")
    return lines


def _stage_text(report: StageReport) -> str:
    from pipelines.sources.left_out import printable

    lines = [
        f"{printable(report.path)}: {report.copied:,} files copied "
        f"({report.copied_bytes / 1e9:.3f} GB in {report.seconds:.1f} s), {report.kept:,} were already "
        "there"
    ]
    if report.extra:
        names = ", ".join(printable(name) for name in report.extra[:3])
        what = "were deleted" if report.deleted else "stay (--delete removes them)"
        lines.append(f"  {len(report.extra):,} files that SRC does not have {what}: {names}")
    lines += [f"  {report.left_out.text()}"] if report.left_out else []
    return "\n".join(lines)
