"""What every command that runs on ranks shares: its arguments, the job, and its end."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from hvdtrain.config.load import config_hash, load_config
from hvdtrain.config.schema import Config
from hvdtrain.errors import ConfigError, HvdtrainError, Preempted
from hvdtrain.launch.job import note_stop
from hvdtrain.signals import ignore_repeats

if TYPE_CHECKING:
    from hvdtrain.comm.ranks import Comm

ConfigFile = Annotated[str, typer.Argument(metavar="CONFIG", help="YAML file of the run.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Settings that replace those of the file."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


def load_on_all(comm: Comm, config: str, overrides: list[str] | None) -> Config:
    """The config on every rank; raises ConfigError on all where it is not the same on all."""
    from hvdtrain.comm.agreement import require_equal, together

    with together(comm):
        cfg = load_config(config, overrides)
    what = f"the config that {config} gives (its sha256)"
    require_equal(comm, what, config_hash(cfg), ConfigError)
    return cfg


@contextlib.contextmanager
def job(config: str | None, overrides: list[str] | None) -> Iterator[Comm]:
    """Join the launcher's ranks; on a fault that only this rank has, leave at once.

    Waiting for the others would wait for ever: the launcher ends them when this one ends.
    `config` is needed before there are ranks for its `comm.interface` alone.
    """
    from hvdtrain.comm.start import init_comm

    interface = "auto"
    if config is not None:
        with contextlib.suppress(HvdtrainError):  # `load_on_all` tells it, once for all ranks
            interface = load_config(config, overrides).comm.interface
    comm = init_comm(interface)
    try:
        yield comm
    except BaseException as error:
        if isinstance(error, Preempted):
            ignore_repeats()
            if comm.rank == 0:
                note_stop(os.environ)
        if not isinstance(error, HvdtrainError) or not error.everywhere:
            if comm.size > 1:
                _die(error, comm)
            raise
        comm.shutdown()
        if comm.rank > 0:
            raise typer.Exit(error.exit_code) from None
        raise
    comm.shutdown()


def _die(error: BaseException, comm: Comm) -> NoReturn:
    if isinstance(error, HvdtrainError):
        tell(f"rank {comm.rank}: {error}")
        code = error.exit_code
    else:
        sys.excepthook(type(error), error, error.__traceback__)
        code = 130 if isinstance(error, KeyboardInterrupt) else 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def tell(text: str) -> None:
    """One line on stderr for each line of `text`."""
    for line in text.split("\n"):
        print(f"hvdtrain: error: {line}", file=sys.stderr, flush=True)
