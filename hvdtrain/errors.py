"""Every error a user can meet, and the exit code it ends the process with.

HvdtrainError            1   anything below that has no code of its own
├── ConfigError          2   YAML, command-line override, or a plan that cannot work
├── DataError            3   dataset missing, empty, unreadable, or not as planned
├── CheckpointError      4   checkpoint damaged, or made by another model
├── CommError            5   a rank died, or the ranks do not agree
├── ResourceError        6   port, disk or run directory not usable
├── TrainingError        7   the loss is not finite
└── Preempted           75   stopped by a signal after a checkpoint: run again to go on

A message says where, what was expected, what was found and what to do, in one line.
"""


class HvdtrainError(Exception):
    """Base of all errors shown to users as one line."""

    exit_code = 1
    everywhere = False
    """True where every rank raises the same, so that one of them is enough to tell it."""


class ConfigError(HvdtrainError):
    """One or more faults in the configuration; `problems` holds one line each."""

    exit_code = 2

    def __init__(self, *problems: str) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class DataError(HvdtrainError):
    """A dataset is missing, empty, unreadable, or not what the plan was made for."""

    exit_code = 3


class CheckpointError(HvdtrainError):
    """A checkpoint is damaged or belongs to another model or run."""

    exit_code = 4


class CommError(HvdtrainError):
    """A collective failed, a rank died, or the ranks do not agree."""

    exit_code = 5


class ResourceError(HvdtrainError):
    """A port, a disk or a directory cannot be used."""

    exit_code = 6


class TrainingError(HvdtrainError):
    """Training cannot go on: the loss is not finite."""

    exit_code = 7
    everywhere = True


class Preempted(HvdtrainError):
    """Stopped by a signal, after a checkpoint was written."""

    exit_code = 75
    everywhere = True
