"""Shared by all commands that run on ranks: arguments, joining the ranks, and how they end."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from hvdtrain.cli.crash import internal_error
from hvdtrain.config.load import config_hash, load_config
from hvdtrain.config.schema import Config
from hvdtrain.errors import ConfigError, HvdtrainError, Preempted
from hvdtrain.launch.job import note_stop
from hvdtrain.signals import ignore_repeats

if TYPE_CHECKING:
    from hvdtrain.comm.ranks import Comm

ConfigFile = Annotated[str, typer.Argument(metavar="CONFIG", help="Config file (YAML).")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[KEY=VALUE]...",
        help="Settings that replace values of the config, for example lr.base=0.2.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print a JSON object instead of text.")]


def load_on_all(comm: Comm, config: str, overrides: list[str] | None) -> Config:
    """Load the config on every rank. Raises ConfigError on all ranks unless it is equal on all."""
    from hvdtrain.comm.agreement import require_equal, together

    with together(comm):
        cfg = load_config(config, overrides)
    require_equal(comm, f"the hash of the config {config}", config_hash(cfg), ConfigError)
    return cfg


@contextlib.contextmanager
def job(config: str | None, overrides: list[str] | None) -> Iterator[Comm]:
    """Join the launcher's ranks. If only this rank has a fault, its process ends at once.

    It must not wait for the others, which wait for it; the launcher ends them. From `config` only
    `comm.interface` is used: it is needed before the ranks are connected.
    """
    from hvdtrain.comm.start import init_comm

    interface = "auto"
    if config is not None:
        with contextlib.suppress(HvdtrainError):  # `load_on_all` reports it, once for all ranks
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
        print_error(f"rank {comm.rank}: {error}")
        code = error.exit_code
    elif isinstance(error, KeyboardInterrupt):
        code = 130
    else:
        fault = internal_error(error)
        print_error(f"rank {comm.rank}: {fault}")
        code = fault.exit_code
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def print_error(text: str) -> None:
    """Print each line of `text` to stderr, marked as an error of hvdtrain."""
    for line in text.split("\n"):
        print(f"hvdtrain: error: {line}", file=sys.stderr, flush=True)
