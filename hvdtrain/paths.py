"""Every file name of a run, in one place."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from hvdtrain.errors import ResourceError


@dataclass(frozen=True)
class RunPaths:
    """The files of one run, all below `root`."""

    root: Path

    @property
    def name(self) -> str:
        """Name of the directory, by which metrics and pages call the run."""
        return self.root.resolve().name

    @property
    def config(self) -> Path:
        """The config with everything resolved."""
        return self.root / "config.yaml"

    @property
    def environment(self) -> Path:
        """Versions and hosts."""
        return self.root / "environment.json"

    @property
    def events(self) -> Path:
        """One JSON object per line: what the run reported, as it went."""
        return self.root / "events.jsonl"

    @property
    def summary(self) -> Path:
        """The result."""
        return self.root / "summary.json"

    @property
    def file_sd(self) -> Path:
        """Where the endpoints of the ranks are, for Prometheus, while the run goes on."""
        return self.root / "file_sd.json"

    @property
    def bad_samples(self) -> Path:
        """One JSON object per bad training image that was masked."""
        return self.root / "bad_samples.jsonl"

    @property
    def calibration(self) -> Path:
        """Speed of one worker alone at each image size and batch."""
        return self.root / "calibration.json"

    @property
    def tuning(self) -> Path:
        """How gradients are exchanged, if that was measured."""
        return self.root / "tuning.json"

    @property
    def report(self) -> Path:
        """One page about the run, for a browser."""
        return self.root / "report.html"

    @property
    def tensorboard(self) -> Path:
        """Event files for TensorBoard, if they are asked for."""
        return self.root / "tensorboard"

    @property
    def checkpoints(self) -> Path:
        """One directory per checkpoint."""
        return self.root / "checkpoints"

    def create(self) -> None:
        """Make the directories; raises ResourceError if they cannot be written."""
        try:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            probe = self.root / f".probe-{os.getpid()}"
            probe.write_bytes(b"")
            probe.unlink()
        except OSError as error:
            raise ResourceError(
                f"output: cannot write the run directory {self.root}: {error.strerror}; "
                "name another with output=DIR"
            ) from None


def run_root(path: Path) -> Path:
    """The run directory that `path` is, or that the checkpoint at `path` is in."""
    return path.parent.parent if (path / "meta.json").is_file() else path


def run_config(path: Path) -> Path:
    """The resolved config of the run that `path` is, or that the checkpoint at `path` is in."""
    return RunPaths(run_root(path)).config
