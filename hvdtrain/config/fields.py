"""The base class of config sections, and ranges of numbers for their fields."""

from __future__ import annotations

import os
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

Positive = Annotated[int, Field(gt=0, le=10**9)]
MAX_EPOCHS = 100_000
"""Of a run."""
Epochs = Annotated[int, Field(gt=0, le=MAX_EPOCHS)]
BatchSize = Annotated[int, Field(gt=0, le=2**20)]
Threads = Annotated[int, Field(gt=0, le=1024)]
PathText = Annotated[str, Field(min_length=1), AfterValidator(os.path.expanduser)]
"""The path of a file or folder; `~` is the home directory."""
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Ratio = Annotated[float, Field(gt=0, le=1)]
InsideUnit = Annotated[float, Field(gt=0, lt=1)]
AtLeastOne = Annotated[float, Field(ge=1, allow_inf_nan=False)]
Momentum = Annotated[float, Field(ge=0, lt=1)]
ImageSide = Annotated[int, Field(ge=8, le=8192)]


class Section(BaseModel):
    """One section of the config: frozen, without type conversion, and without unknown keys."""

    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, use_attribute_docstrings=True
    )
