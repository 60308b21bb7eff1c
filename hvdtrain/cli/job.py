"""Shared by all commands that run on ranks: arguments, joining the ranks, and how they end."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from hvdtrain import activity
from hvdtrain.activity import showing
from hvdtrain.cli.crash import unexpected
from hvdtrain.cli.misuse import only_settings
from hvdtrain.config.load import config_hash, load_config
from hvdtrain.config.schema import Config, Engine, Train
from hvdtrain.errors import ConfigError, HvdtrainError, Preempted
from hvdtrain.launch.job import note_stop, noted_here
from hvdtrain.launch.variables import launched_rank, launched_size
from hvdtrain.run.guard.watchdog import watching
from hvdtrain.signals import end_at_once, heard, ignore_repeats, wait_for_notice
from hvdtrain.streams import discard, print_error, print_error_line, show_cursor

if TYPE_CHECKING:
    from hvdtrain.comm.ranks import Comm

LATER_S = 5.0
"""Time for a launcher to end the other ranks when rank 0 has ended."""

ConfigFile = Annotated[str, typer.Argument(metavar="CONFIG", help="Config file (YAML).")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[KEY=VALUE]...",
        help="Settings that replace values of the config, for example lr.base=0.2.",
        callback=only_settings,
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
def job(config: str | None, overrides: list[str] | None, before: str = "the end") -> Iterator[Comm]:
    """Join the launcher's ranks. If only this rank has a fault, its process ends at once.

    It must not wait for the others, which wait for it; the launcher ends them. From `config` only
    `comm.interface`, `comm.engine`, `comm.link_gbit` and `train.stall_timeout` are used: they are needed
    before the ranks are connected. Its faults are raised before anything slow is imported. A signal to stop
    ends this process at once, with a line on rank 0 that it came before `before`, unless the body handles it.
    """
    engine: Engine = "auto"
    interface, timeout_s, link_gbit = "auto", Train().stall_timeout, None
    if config is not None:
        cfg = load_config(config, overrides)
        interface, timeout_s = cfg.comm.interface, cfg.train.stall_timeout
        engine, link_gbit = cfg.comm.engine, cfg.comm.link_gbit
    rank = launched_rank(os.environ)
    shown = showing() if rank == 0 else contextlib.nullcontext()
    with heard(partial(_end_at_once, rank, before)), shown, watching(timeout_s, rank):
        activity.enter("importing torch")
        from hvdtrain.comm.start import init_comm

        activity.enter("joining the ranks")
        comm = init_comm(interface, timeout_s, engine, link_gbit=link_gbit)
        activity.enter("importing DALI and the trainer")
        with _ended_with_its_ranks(comm):
            yield comm


def _end_at_once(rank: int, before: str, number: int) -> None:
    def say() -> None:
        show_cursor()
        if rank == 0:
            at = activity.present().place()
            print_error_line(f"hvdtrain: ended by a signal before {before}, at: {at}")

    end_at_once(number, say)


@contextlib.contextmanager
def _ended_with_its_ranks(comm: Comm) -> Iterator[None]:
    """End this process, and how: see `job`."""
    try:
        yield
    except BaseException as error:
        noted = False
        if isinstance(error, Preempted):
            ignore_repeats()
            noted = _note_stop(comm)
        if not isinstance(error, HvdtrainError) or not error.everywhere:
            if comm.size > 1:
                _die(error, comm)
            raise
        comm.shutdown()
        if noted:
            if comm.rank == 0:
                print_error(str(error))
            raise typer.Exit from None
        if comm.rank > 0:
            raise typer.Exit(error.exit_code) from None
        raise
    comm.shutdown()


def _note_stop(comm: Comm) -> bool:
    """Note an orderly stop for `hvdtrain launch`; whether it will end with the code for it.

    Then the ranks end with 0: mpirun takes any other code for a failure, and waits for twice its
    grace. Ranks on other hosts do not know of the note.
    """
    noted = note_stop(os.environ) if comm.rank == 0 else noted_here(os.environ)
    return noted and comm.size == comm.local_size


def _die(error: BaseException, comm: Comm) -> NoReturn:
    if isinstance(error, HvdtrainError):
        print_error(f"rank {comm.rank}: {error}")
        code = error.exit_code
    elif isinstance(error, KeyboardInterrupt):
        code = 130
    else:
        fault = unexpected(error)
        print_error(f"rank {comm.rank}: {fault}")
        code = fault.exit_code
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            discard(stream)
    os._exit(code)


def print_early_error(text: str, env: Mapping[str, str]) -> None:
    """Print an error of a process that has not joined the others; all of them may have the same.

    Ranks above 0 wait until the launcher ends them because of rank 0, which has told it already. One
    that is left has a fault of its own.
    """
    rank = launched_rank(env)
    if launched_size(env) > 1 and rank > 0:
        if wait_for_notice(LATER_S):
            return
        text = "\n".join(f"rank {rank}: {line}" for line in text.split("\n"))
    print_error(text)
