"""Reads calibration.json: the speed of one worker, from a run or `hvdtrain scaling calibrate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import ConfigDict, Field, ValidationError, model_validator

from hvdtrain.config.fields import NotNegative, Positive, PositiveFloat, Section
from hvdtrain.errors import ResourceError


class Entry(Section):
    """The speed of one worker without communication, at one image size and batch."""

    model_config = ConfigDict(extra="ignore")

    image_size: Positive
    batch: Positive
    """Images of one update on one rank, all micro-batches together."""
    accumulate: Positive | None = None
    """Micro-batches of one update; None if the file does not say it."""
    trained: int = 0
    """Index of the phase that last unfroze parts of the network; 0 if none does."""
    images_per_second: PositiveFloat
    backward_s: NotNegative
    """Of one update: its last backward pass, in which gradients can be sent."""
    release_s: list[NotNegative] | None = None
    """When each group of gradients is ready, in seconds from the start of that backward pass."""


class CalibrationFile(Section):
    """The content of a calibration.json."""

    model_config = ConfigDict(extra="ignore")

    model: str
    precision: str
    device: str
    groups: list[PositiveFloat] | None = None
    """Bytes in fp32 of each group of gradients, in order of release; None in the file of a run."""
    matrices: list[list[tuple[Positive, Positive]]] | None = None
    """Rows and columns of the tensors of two dimensions or more in each group; None in older files."""
    entries: Annotated[list[Entry], Field(min_length=1)]

    @model_validator(mode="after")
    def _check(self) -> CalibrationFile:
        if self.groups is None:
            return self
        if self.matrices is not None and len(self.matrices) != len(self.groups):
            raise ValueError(f"matrices of {len(self.matrices)} groups, not {len(self.groups)}")
        for entry in self.entries:
            times = entry.release_s or []
            if len(times) != len(self.groups) or times != sorted(times):
                raise ValueError(
                    f"{len(times)} release_s of {len(self.groups)} groups, or not in rising order"
                )
        return self


def read_calibration_file(file: Path, where: str) -> CalibrationFile:
    """The content of `file`; `where` begins the message of an error.

    Raises ResourceError where the file cannot be read or is no calibration.json.
    """
    try:
        return CalibrationFile.model_validate_json(file.read_bytes())
    except OSError as error:
        raise ResourceError(f"{where}: cannot be read: {error.strerror}") from None
    except ValidationError as errors:
        first = errors.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise not_a_calibration(where, f"{place}: {first['msg']}".removeprefix(": ")) from None


def not_a_calibration(where: str, reason: str) -> ResourceError:
    """The error of a file that is no usable calibration.json."""
    return ResourceError(
        f"{where}: expected the calibration.json of a run or of scaling calibrate, found "
        f"another file ({reason})"
    )
