"""The options that all studies of checkpoints have, and how such a study is run and printed."""

from __future__ import annotations

import functools
import inspect
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_type_hints

import typer

from hvdtrain.activity import duration
from hvdtrain.cli.job import AsJson, job
from hvdtrain.cli.misuse import only_settings
from hvdtrain.errors import ConfigError
from hvdtrain.paths import run_config
from hvdtrain.streams import print_error_line, say

if TYPE_CHECKING:
    from hvdtrain.analysis.study.results import Request, Results
    from hvdtrain.comm.ranks import Comm

SETTING = re.compile(r"[a-z_]+(\.[a-z_0-9]+)*=")


@dataclass(frozen=True)
class Common:
    """The values of these options; their defaults are those of the command line."""

    paths: Annotated[
        list[str],
        typer.Argument(
            metavar="CKPT",
            help="Checkpoints, or run directories, of which the newest one is taken; then settings that "
            "replace values of their configs, for example data.train=DIR.",
        ),
    ]
    split: Annotated[
        Literal["train", "val"],
        typer.Option(help="Images of the loss. Both are prepared as for eval."),
    ] = "train"
    images: Annotated[
        int,
        typer.Option(min=1, help="Number of images, the same ones for every checkpoint and seed."),
    ] = 2000
    batch: Annotated[int, typer.Option(min=1, help="Images of one forward pass.")] = 125
    dtype: Annotated[
        Literal["fp32", "fp64"], typer.Option(help="Precision in which the network computes.")
    ] = "fp32"
    memory_gb: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="Memory in which each rank keeps decoded images, in GB; if that is too little, they are "
            "decoded at every evaluation. Default: its share of a quarter of the free memory.",
        ),
    ] = None
    seed: Annotated[int, typer.Option(min=0, help="Seed of random directions and vectors.")] = 0
    output: Annotated[
        Path | None,
        typer.Option(help="Folder for JSON, CSV, PNG and SVG. Default: study-COMMAND."),
    ] = None
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Use the folder although it has files.")
    ] = False
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Measure one batch, and only say how long all would take."),
    ] = False
    as_json: AsJson = False

    def request(self) -> Request:
        """What the study is asked for."""
        from hvdtrain.analysis.study.images import Choice
        from hvdtrain.analysis.study.results import Request

        paths, settings = self.split_paths()
        choice = Choice(self.split, self.images, self.batch, self.dtype, self.memory_gb)
        return Request(paths, settings, choice, self.seed, self.dry_run)

    def split_paths(self) -> tuple[list[Path], list[str]]:
        """The checkpoints, and the settings after them. Raises ConfigError if none is named."""
        settings = [word for word in self.paths if SETTING.match(word)]
        paths = [Path(word) for word in self.paths if word not in settings]
        if not paths:
            raise ConfigError(
                f"{settings[0]}: no checkpoint before it: expected CKPT... [KEY=VALUE]..."
            )
        return paths, only_settings(settings) or []


def with_common(
    command: Callable[..., None], *, without: Sequence[str] = (), **hints_of: Any
) -> Callable[..., None]:
    """`command(common, **own)` as a function of the options of Common and of its `own`.

    `without`: options of Common that the command has not. `hints_of`: other annotations of some.
    """
    shared = {
        name: parameter
        for name, parameter in inspect.signature(Common).parameters.items()
        if name not in without
    }
    parameters = inspect.signature(command).parameters
    own = [parameter for name, parameter in parameters.items() if name != "common"]
    hints = get_type_hints(Common, include_extras=True) | hints_of
    hints |= get_type_hints(command, include_extras=True)
    paths, *others = shared.values()

    @functools.wraps(command)
    def typed(**given: Any) -> None:
        common = Common(**{name: given.pop(name) for name in shared})
        command(common, **given)

    typed.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [
            parameter.replace(annotation=hints[parameter.name], kind=inspect.Parameter.KEYWORD_ONLY)
            for parameter in (paths, *own, *others)
        ]
    )
    typed.__annotations__ = {name: hints[name] for name in (*shared, *(p.name for p in own))}
    del typed.__wrapped__
    return typed


def run_study(
    name: str,
    common: Common,
    study: Callable[[Request, Comm], Results],
    lines: Callable[[dict[str, Any]], list[str]],
) -> None:
    """Run `study` on the ranks of this job; `lines` are what rank 0 prints of each checkpoint."""
    paths, settings = common.split_paths()
    config = run_config(paths[0])
    with job(str(config) if config.is_file() else None, settings) as comm:
        from hvdtrain.analysis.study.output import check_output, write_results

        output = common.output or Path(f"study-{name}")
        if not common.dry_run:
            check_output(output, comm, overwrite=common.overwrite)
        results = study(common.request(), comm)
        if not common.dry_run:
            write_results(output, comm, results)
        if comm.rank > 0:
            return
        for warning in results.warnings:
            print_error_line(f"hvdtrain: warning: {warning}")
        found = results.as_dict()
        if common.as_json:
            say(json.dumps(found))
        elif results.seconds is not None:
            ranks = "1 rank" if comm.size == 1 else f"{comm.size} ranks"
            say(f"about {duration(results.seconds)} on {ranks}, by one batch of images")
        else:
            for one in found["checkpoints"]:
                say("\n".join([f"{one['name']}, {one['images']:,} images", *lines(one)]))
            say(f"numbers and pictures: {output}/{name}.*")


def numbers(option: str, text: str, count: int | None = None) -> list[float]:
    """The numbers of a list with commas. Raises ConfigError unless there are `count` of them."""
    try:
        found = [float(word) for word in text.split(",")]
    except ValueError:
        found = []
    if not found or (count is not None and len(found) != count):
        what = "numbers" if count is None else f"{count} numbers"
        raise ConfigError(f"{option} {text}: expected {what} separated by commas, as in -1,1")
    return found
