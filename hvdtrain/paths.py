"""All file names of a run."""

from __future__ import annotations

import contextlib
import glob
import os
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from hvdtrain.errors import ResourceError


@dataclass(frozen=True)
class RunPaths:
    """The files of one run, all below `root`."""

    root: Path

    @property
    def name(self) -> str:
        """Name of the directory; metrics and pages use it as the name of the run."""
        return self.root.resolve().name

    @property
    def config(self) -> Path:
        """The resolved config."""
        return self.root / "config.yaml"

    @property
    def environment(self) -> Path:
        """Versions, host and command line."""
        return self.root / "environment.json"

    @property
    def classes(self) -> Path:
        """The names of the classes in the order of their numbers, one a line."""
        return self.root / "classes.txt"

    @property
    def dataset(self) -> Path:
        """Names, classes and sizes of all images that the run began with."""
        return self.root / "dataset.npz"

    @property
    def events(self) -> Path:
        """All reports of the run, one JSON object per line."""
        return self.root / "events.jsonl"

    @property
    def summary(self) -> Path:
        """The result of the run."""
        return self.root / "summary.json"

    @property
    def file_sd(self) -> Path:
        """Addresses of the ranks' endpoints for Prometheus; exists while the run is active."""
        return self.root / "file_sd.json"

    @property
    def bad_samples(self) -> Path:
        """Bad training images that were masked, one JSON object per line."""
        return self.root / "bad_samples.jsonl"

    @property
    def calibration(self) -> Path:
        """Speed of a single worker at each image size and batch."""
        return self.root / "calibration.json"

    @property
    def tuning(self) -> Path:
        """The settings of the gradient exchange, if `comm.tune` measured them."""
        return self.root / "tuning.json"

    @property
    def report(self) -> Path:
        """The HTML page about the run."""
        return self.root / "report.html"

    @property
    def tensorboard(self) -> Path:
        """Event files for TensorBoard, if `metrics.tensorboard` is set."""
        return self.root / "tensorboard"

    @property
    def mirror_id(self) -> Path:
        """A random number, if the run has a mirror: it tells the run from another at the same path."""
        return self.root / "mirror.id"

    @property
    def stalls(self) -> Path:
        """The stacks of ranks that made no progress: a folder per attempt, named by its start."""
        return self.root / "stalls"

    @property
    def checkpoints(self) -> Path:
        """One directory per checkpoint."""
        return self.root / "checkpoints"

    def create(self) -> None:
        """Create the directories. Raises ResourceError if they cannot be written."""
        try:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            probe = self.root / f".probe-{os.getpid()}"
            probe.write_bytes(b"")
            probe.unlink()
        except OSError as error:
            raise ResourceError(
                f"output: cannot write the run directory {self.root}: {error.strerror}; "
                "choose another with output=DIR"
            ) from None


STAMP = "%Y%m%d-%H%M%S"
"""A time in the name of a run."""


def fresh_stamp(output: Path, name: str) -> str:
    """The local time for the name of a new run, after that of every run of this name.

    Where the clock was set back, or summer time ends, it is a second after the newest: the order of
    the names is that of the starts.
    """
    now = datetime.now()
    newest = now
    for root in output.glob(f"{glob.escape(name)}-[0-9]*-[0-9]*/"):
        with contextlib.suppress(ValueError, OverflowError):  # not of this form
            stamp = "-".join(root.name.removeprefix(f"{name}-").split("-")[:2])
            newest = max(newest, datetime.strptime(stamp, STAMP) + timedelta(seconds=1))
    own = now.strftime(STAMP)
    # The same second is no step back: such names get a number.
    one_more = (now + timedelta(seconds=1)).replace(microsecond=0)
    return own if newest <= one_more else newest.strftime(STAMP)


def run_root(path: Path) -> Path:
    """The run directory of `path`, which is a run directory or one of its checkpoints.

    A checkpoint may be named from inside its folder, as `.`, or by a link to it.
    """
    if not (path / "meta.json").is_file():
        return path
    root = Path(os.path.abspath(path)).parent.parent  # noqa: PTH100 - keeps links
    return root if RunPaths(root).config.is_file() else path.resolve().parent.parent


def run_config(path: Path) -> Path:
    """The resolved config of the run of `path`, see `run_root`."""
    return RunPaths(run_root(path)).config
