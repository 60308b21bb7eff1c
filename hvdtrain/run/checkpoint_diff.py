"""What differs between two checkpoints: their metadata, and their tensors one by one."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from hvdtrain import activity
from hvdtrain.checkpoint_files import verify
from hvdtrain.errors import CheckpointError

CHUNK = 2**22
"""Elements that are compared at once."""
UNCOUNTED = ("number", "top1", "train_seconds")
"""Metadata of two equal trainings that differ: the count of checkpoints, and a time that was measured."""
MOST_DEPTH = 8
"""Of nested metadata; what is deeper is one value."""


class Setting(NamedTuple):
    """Metadata that differ. A value that is missing is None, as is null."""

    key: str
    a: Any
    b: Any


class Differing(NamedTuple):
    """A tensor of the same shape with other bytes."""

    name: str
    elements: int
    """How many have other bytes."""
    largest: float | None
    """Largest absolute difference; None if one of the values is not finite."""
    counts: bool
    """Integers, as the number of batches that batch norm has seen."""


@dataclass
class FileDifference:
    """Of the tensors of one file."""

    tensors: int = 0
    """In both."""
    only_a: list[str] = field(default_factory=list)
    only_b: list[str] = field(default_factory=list)
    forms: list[Setting] = field(default_factory=list)
    """Tensors of another type or shape."""
    differing: list[Differing] = field(default_factory=list)

    @property
    def equal(self) -> bool:
        """To the bit."""
        return not (self.only_a or self.only_b or self.forms or self.differing)

    def largest(self, *, counts: bool) -> Differing | None:
        """The tensor, of integers or of others, with the largest difference or with one that is not
        finite."""
        return max(
            (one for one in self.differing if one.counts == counts),
            key=lambda one: math.inf if one.largest is None else one.largest,
            default=None,
        )

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            **asdict(self),
            "forms": [one._asdict() for one in self.forms],
            "differing": [one._asdict() for one in self.differing],
        }


@dataclass
class Difference:
    """Of two checkpoints."""

    settings: list[Setting]
    uncounted: list[Setting]
    """See UNCOUNTED."""
    files: dict[str, FileDifference]
    """By name."""

    @property
    def equal(self) -> bool:
        """Whether nothing differs but what does not count."""
        return not self.settings and all(file.equal for file in self.files.values())

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "equal": self.equal,
            "settings": [one._asdict() for one in self.settings],
            "not_counted": [one._asdict() for one in self.uncounted],
            "files": {name: file.as_dict() for name, file in self.files.items()},
        }


def difference(a: Path, b: Path) -> Difference:
    """Compare two checkpoints, after every byte of both was verified. Raises CheckpointError."""
    activity.enter(f"verifying {a}")
    first = verify(a)
    activity.enter(f"verifying {b}")
    second = verify(b)
    digests = first.pop("sha256"), second.pop("sha256")
    found = list(_settings("", first, second, 0))
    files = {}
    for name in sorted({*digests[0], *digests[1]}):
        activity.enter(f"comparing {name}")
        places = [
            a / name if name in digests[0] else None,
            b / name if name in digests[1] else None,
        ]
        files[name] = _files(*places, same=digests[0].get(name) == digests[1].get(name))
    return Difference(
        [one for one in found if one.key not in UNCOUNTED],
        [one for one in found if one.key in UNCOUNTED],
        files,
    )


def _settings(key: str, a: Any, b: Any, depth: int) -> Iterator[Setting]:
    """The values that differ, by their place as in `config.phases.0.epochs`."""
    parts = [_parts(value) for value in (a, b)] if depth < MOST_DEPTH else []
    if parts and all(part is not None for part in parts):
        left, right = (part or {} for part in parts)
        for name in {**left, **right}:
            place = f"{key}.{name}" if key else name
            yield from _settings(place, left.get(name), right.get(name), depth + 1)
    elif a != b:
        yield Setting(key, a, b)


def _parts(value: Any) -> dict[str, Any] | None:
    """The parts of a dictionary or of a list of dictionaries; None of a single value."""
    if isinstance(value, dict):
        return value
    if isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
        return {str(index): item for index, item in enumerate(value)}
    return None


def _files(a: Path | None, b: Path | None, *, same: bool) -> FileDifference:
    """Compare the tensors of a file, which one of the two may lack."""
    import safetensors

    try:
        # Names alone are read without torch.
        with (
            safetensors.safe_open(a or b, "np") as left,
            safetensors.safe_open(b or a, "np") as right,
        ):
            left_names = set(left.keys()) if a else set()
            right_names = set(right.keys()) if b else set()
        both = sorted(left_names & right_names)
        found = FileDifference(
            len(both), sorted(left_names - right_names), sorted(right_names - left_names)
        )
        for name in [] if same else both:
            # Opened anew for each: what was mapped of the file would stay in memory.
            with safetensors.safe_open(a, "pt") as left, safetensors.safe_open(b, "pt") as right:
                _tensors(name, left, right, found)
    except (safetensors.SafetensorError, OSError, RuntimeError, ValueError, KeyError) as error:
        raise CheckpointError(f"{a or b}: cannot be compared: {str(error)[:200]}") from None
    return found


def _tensors(name: str, left: Any, right: Any, found: FileDifference) -> None:
    slices = left.get_slice(name), right.get_slice(name)
    shapes = [one.get_shape() for one in slices]
    forms = [f"{one.get_dtype()} {one.get_shape()}" for one in slices]
    if forms[0] != forms[1]:
        found.forms.append(Setting(name, *forms))
    if shapes[0] == shapes[1] and (differing := _values(name, left, right)):
        found.differing.append(differing)


def _values(name: str, left: Any, right: Any) -> Differing | None:
    """Compare two tensors of one shape by pieces, so that little memory is used."""
    import torch

    a, b = left.get_tensor(name).flatten(), right.get_tensor(name).flatten()
    elements, largest = 0, 0.0
    for x, y in zip(a.split(CHUNK), b.split(CHUNK), strict=True):
        if x.dtype == y.dtype:
            other = x.view(torch.uint8) != y.view(torch.uint8)
            other = other.view(x.numel(), x.element_size()).any(1)
        else:
            other = x.double() != y.double()
        if other.any():
            elements += int(other.sum())
            apart = _wide(x[other]) - _wide(y[other])
            piece = float(apart.abs().max())
            largest = max(largest, piece) if math.isfinite(piece + largest) else math.inf
    if not elements:
        return None
    counts = not (a.is_floating_point() or a.is_complex())
    return Differing(name, elements, largest if math.isfinite(largest) else None, counts)


def _wide(values: Any) -> Any:
    """As float64, or as int64 where that is exact."""
    if values.is_complex():
        return values.cdouble()
    return values.double() if values.is_floating_point() else values.long()
