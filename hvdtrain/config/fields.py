"""The base class of config sections, and ranges of numbers for their fields."""

from __future__ import annotations

import os
from typing import Annotated, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

Kind = Literal["identity", "plan", "machine"]
"""What a resumed run does with another value of a field."""
KIND = "resume"
"""Key of the kind in the JSON schema of a field."""
T = TypeVar("T")
Identity = Annotated[T, Field(json_schema_extra={KIND: "identity"})]
"""A field that makes a run what it is: another value is refused unless it is insisted on."""
Planned = Annotated[T, Field(json_schema_extra={KIND: "plan"})]
"""A field that may change in the course of a run: another value is shown and recorded."""
Machine = Annotated[T, Field(json_schema_extra={KIND: "machine"})]
"""A field that depends on the machines, or does not change what is trained: free."""

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


def _rising(pair: list[float]) -> list[float]:
    if pair[0] > pair[1]:
        raise ValueError(f"expected [smallest, largest], found {pair}")
    return pair


CropAspect = Annotated[
    list[Annotated[float, Field(ge=0.01, le=100)]],
    Field(min_length=2, max_length=2),
    AfterValidator(_rising),
]
"""Smallest and largest width/height of a crop."""
LossScale = Annotated[float, Field(ge=1e-6, le=1e38)]
"""Within the range of fp32."""
ImageSide = Annotated[int, Field(ge=8, le=8192)]


class Section(BaseModel):
    """One section of the config: frozen, without type conversion, and without unknown keys."""

    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, use_attribute_docstrings=True
    )
