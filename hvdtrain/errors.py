"""Every error that a user can meet, with the exit code of the process.

All are subclasses of HvdtrainError. A message is one line: where, what was expected, what was
found, what to do. docs/exit-codes.md lists typical causes.
"""


class HvdtrainError(Exception):
    """Base of all errors that are shown to users as one line, without a traceback."""

    exit_code = 1
    meaning = "unexpected error"
    """What the exit code stands for."""
    everywhere = False
    """True where every rank raises the same error, so that only rank 0 has to show it."""


class ConfigError(HvdtrainError):
    """One or more faults in the config; `problems` holds one line for each."""

    exit_code = 2
    meaning = "config or command line"

    def __init__(self, *problems: str) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class DataError(HvdtrainError):
    """A dataset is missing, empty, unreadable, or not the one that the plan was made for."""

    exit_code = 3
    meaning = "data"


class CheckpointError(HvdtrainError):
    """A checkpoint is damaged or belongs to another model or run."""

    exit_code = 4
    meaning = "checkpoint"


class CommError(HvdtrainError):
    """A collective failed, a rank died, or the ranks do not agree."""

    exit_code = 5
    meaning = "communication"


class SumRefused(CommError):
    """A rank cannot take part in sums that others have started; they ended on all ranks, which go on."""


class ResourceError(HvdtrainError):
    """A port, a disk or a directory cannot be used, or memory was lacking."""

    exit_code = 6
    meaning = "port, disk, memory or run directory"


class TrainingError(HvdtrainError):
    """Training cannot go on: a loss or the state is not finite, or every update is skipped."""

    exit_code = 7
    meaning = "loss not finite"
    everywhere = True


class StallError(HvdtrainError):
    """A rank made no progress for too long. Not raised: the process ends where it stands."""

    exit_code = 8
    meaning = "no progress"


class DivergenceError(HvdtrainError):
    """Ranks that must have the same weights have not."""

    exit_code = 9
    meaning = "ranks differ"
    everywhere = True


class InternalError(HvdtrainError):
    """An error that nobody foresaw: a bug of hvdtrain."""

    exit_code = 70
    meaning = "internal error: a bug of hvdtrain"


class Preempted(HvdtrainError):
    """Stopped by a signal, after a checkpoint was written: the run can be resumed."""

    exit_code = 75
    meaning = "stopped by a signal, after a checkpoint"
    everywhere = True


_MEMORY = (
    *("can't allocate memory", "cannot allocate memory", "not enough memory", "out of memory"),
    *("alloc_failed", "bad_alloc", "allocation failed"),
)
"""What torch, CUDA, cuDNN and DALI say where memory is lacking; in lower case."""
_ONEDNN = ("could not create a primitive", "could not create a memory object")
"""All that oneDNN says then, where it runs the layers of a CPU. With more words it is another fault."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory was lacking; torch and DALI raise RuntimeError for it on a CPU."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    text = str(error).lower()
    if isinstance(error, RuntimeError) and text in _ONEDNN:
        return True
    return isinstance(error, (RuntimeError, OSError)) and any(word in text for word in _MEMORY)


def exit_codes() -> dict[int, str]:
    """The exit codes of all errors and what each stands for, in order."""
    kinds = HvdtrainError.__subclasses__()
    return {kind.exit_code: kind.meaning for kind in sorted(kinds, key=lambda k: k.exit_code)}
