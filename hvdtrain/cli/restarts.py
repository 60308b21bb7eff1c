"""`hvdtrain launch --max-restarts`: the run directory of all attempts, and what is told of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from hvdtrain.checkpoint_files import list_checkpoints
from hvdtrain.config.schema import Config
from hvdtrain.errors import ConfigError
from hvdtrain.launch.hosts import Host
from hvdtrain.launch.job import Ended
from hvdtrain.launch.spares import Pool, away_in_slurm
from hvdtrain.launch.start import Job
from hvdtrain.launch.supervise import Supervised, keep_note
from hvdtrain.paths import RunPaths, fresh_stamp, run_root
from hvdtrain.preflight.hosts import HostQuery, check_hosts
from hvdtrain.run.other_ranks import Batch
from hvdtrain.streams import print_error_line


def resumable(arguments: Sequence[str], cfg: Config | None) -> tuple[list[str], Path]:
    """The command of a rank, so that each attempt goes on with the same run, and its directory.

    Raises ConfigError for another command than train.
    """
    words = list(arguments)
    if words[0] != "train":
        raise ConfigError(
            f"--max-restarts: only train can go on from a checkpoint, found {words[0]}"
        )
    resume, run_dir = _option(words, "--resume"), _option(words, "--run-dir")
    if resume not in (None, "auto", "never"):
        return words, run_root(Path(resume))
    if cfg is None:
        raise ConfigError("--max-restarts: give train a CONFIG, or --resume RUN")
    if resume == "never":
        raise ConfigError("--max-restarts: not with --resume never: each attempt would start anew")
    if resume == "auto" and run_dir is None:
        raise ConfigError(
            "--max-restarts with --resume auto: name the run by --run-dir DIR or by --resume RUN"
        )
    if run_dir is not None and resume is None and RunPaths(Path(run_dir)).events.exists():
        raise ConfigError(
            f"--run-dir {run_dir}: holds a run already: add --resume auto to go on with it"
        )
    if run_dir is None:
        run_dir = str(Path(cfg.output) / f"{cfg.name}-{fresh_stamp(Path(cfg.output), cfg.name)}")
        words += ["--run-dir", run_dir]
    return words if resume else [*words, "--resume", "auto"], Path(run_dir)


def _option(words: Sequence[str], name: str) -> str | None:
    """The value of an option, written as two words or as one with an equals sign."""
    for word, value in zip(words, [*words[1:], ""], strict=True):
        if word == name:
            return value
        if word.startswith(f"{name}="):
            return word.partition("=")[2]
    return None


def with_batch_ranks(arguments: Sequence[str], ranks: int) -> tuple[list[str], int]:
    """The command of a rank with the number of ranks that its batch is meant for, and that number: an attempt
    may begin anew on fewer than `ranks`. Raises ConfigError."""
    given = _option(arguments, "--batch-for-ranks")
    if given is None:
        return [*arguments, "--batch-for-ranks", str(ranks)], ranks
    if not given.isdigit() or int(given) < 1:
        raise ConfigError(f"--batch-for-ranks: expected a number of ranks, found {given!r}")
    return list(arguments), int(given)


def can_share(cfg: Config | None, ranks: int) -> Callable[[int], bool]:
    """Whether another number of ranks can share the global batches that `cfg` has on `ranks` ranks."""
    if cfg is None or cfg.train.on_other_ranks == "as_given":
        return lambda _: True
    totals = Batch.of(cfg).total(ranks)
    return lambda others: not any(total % others for total in totals)


Tell = Callable[[str], None]
"""Shows the user a line, and keeps it with the run."""


def supervised(
    start: Callable[[Callable[[], bool], Tell], Ended], max_restarts: int, run_dir: Path | None
) -> int:
    """Run a job, and again after a crash; returns its exit code."""
    if run_dir is None:
        return start(lambda: False, print_error_line).code
    paths = RunPaths(run_dir)

    def tell(text: str) -> None:
        print_error_line(f"hvdtrain: launch: {text}")
        keep_note(paths.events, text)

    def newest() -> str | None:
        found = list_checkpoints(paths.checkpoints)
        return found[0].name if found else None

    return Supervised(lambda stop: start(stop, tell), max_restarts, newest, tell).run()


class Attempts:
    """Starts attempt after attempt, on other hosts where one has failed and there are spares."""

    def __init__(self, job: Callable[[], Job], pool: Pool, *, in_slurm: bool) -> None:
        """`job` prepares an attempt on the hosts that `pool` uses now."""
        self._job, self._pool, self._in_slurm = job, pool, in_slurm
        self._before: Ended | None = None

    def start(self, stopped: Callable[[], bool], tell: Tell) -> Ended:
        """One attempt. Raises HvdtrainError if it cannot be started."""
        away = away_in_slurm if self._in_slurm else _unreachable
        if self._before is not None:
            for text in self._pool.renew(self._before.errors, away):
                tell(text)
        recall = partial(self._pool.returned, away) if self._pool.lacks_hosts else None
        self._before = self._job().run(stopped, recall)
        return self._before


def _unreachable(hosts: Sequence[Host]) -> set[str]:
    """The hosts that ssh does not reach."""
    found = check_hosts(hosts, HostQuery()).findings
    return {finding.where for finding in found if finding.name == "ssh"}
