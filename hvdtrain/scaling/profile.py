"""Speed of one worker alone, and the gradients it hands to the network: measured, or by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from hvdtrain.engine.gradient_groups import group_limit
from hvdtrain.errors import ConfigError
from hvdtrain.scaling.architectures import layers_of
from hvdtrain.scaling.calibration_file import Entry, not_a_calibration, read_calibration_file
from hvdtrain.scaling.overlap import Group

BACKWARD_SHARE = 2 / 3
"""Of a step, where it is not measured: for each multiplication of the forward pass the backward
pass does two, one for the layer's weights and one for its inputs."""
_FP32 = 4


@dataclass(frozen=True)
class Profile:
    """One update of one worker without communication."""

    image_size: int
    batch: int
    """Images of one micro-batch."""
    step_s: float
    """Of the update, all its micro-batches together."""
    backward_s: float
    """Of the last micro-batch, in which gradients are sent."""
    groups: tuple[Group, ...]
    """In order of release; bytes in fp32, seconds from the start of that backward pass."""
    accumulate: int = 1
    """Micro-batches of the update."""
    guessed: bool = False
    """Whether it was measured at another image size and scaled by the number of pixels."""

    def scaled(self, factor: float) -> Profile:
        """The same with `factor` times the work in every micro-batch."""
        groups = tuple(Group(g.size_bytes, g.release_s * factor) for g in self.groups)
        return replace(
            self,
            step_s=self.step_s * factor,
            backward_s=self.backward_s * factor,
            groups=groups,
        )

    def with_batch(self, batch: int) -> Profile:
        """The same with larger or smaller micro-batches, at the same images/s."""
        return replace(self.scaled(batch / self.batch), batch=batch)

    def accumulated(self, micro_batches: int) -> Profile:
        """The same with so many micro-batches; the last one's backward pass sends."""
        step_s = self.step_s * micro_batches / self.accumulate
        return replace(self, accumulate=micro_batches, step_s=step_s)

    @property
    def size_bytes(self) -> float:
        """Of all gradients, in fp32."""
        return sum(group.size_bytes for group in self.groups)


def hand_given(
    model: str,
    *,
    image_size: int,
    batch: int,
    step_s: float,
    group_bytes: float,
    classes: int = 1000,
    backward_s: float | None = None,
) -> Profile:
    """A profile of a known network from the seconds of one step.

    Layers take of the backward pass what they have of the multiplications, and are bundled as the
    reducer does. Raises ConfigError for a network that is not in the table.
    """
    seconds = step_s * BACKWARD_SHARE if backward_s is None else backward_s
    layers = layers_of(model, image_size, classes)[::-1]
    total = sum(layer.multiplications for layer in layers)
    groups: list[Group] = []
    size = done = 0.0
    for layer in layers:
        size += layer.parameters * _FP32
        done += layer.multiplications
        if size >= group_limit(len(groups), group_bytes) or layer is layers[-1]:
            groups.append(Group(size, seconds * done / total))
            size = 0.0
    return Profile(image_size, batch, step_s, seconds, tuple(groups))


class Calibration:
    """The entries of a calibration.json: of a run, or of `hvdtrain scaling calibrate`."""

    def __init__(self, profiles: Sequence[Profile], about: str) -> None:
        self.profiles = tuple(profiles)
        self.about = about
        """Model, precision and device it was measured with."""

    def profile(self, image_size: int, batch: int, accumulate: int = 1) -> Profile:
        """At `image_size` and so many micro-batches of `batch`: the entry nearest in size, then
        batch, scaled by the pixels and images where they differ."""

        def distance(p: Profile) -> tuple[float, float]:
            return abs(math.log(p.image_size / image_size)), abs(math.log(p.batch / batch))

        near = min(self.profiles, key=distance)
        area = (image_size / near.image_size) ** 2
        found = near.scaled(area).with_batch(batch).accumulated(accumulate)
        return replace(found, image_size=image_size, guessed=area != 1)


def read_calibration(
    file: Path, model: str, *, group_bytes: float, classes: int = 1000, accumulate: int = 1
) -> Calibration:
    """The profiles in a calibration.json of `model`.

    The file of a run lacks the gradients: those of the network in our table are taken, bundled by
    `group_bytes`. Entries without a number of micro-batches have `accumulate`.
    Raises ResourceError where the file is no calibration.json, and ConfigError where it was made
    for another model, or lacks the gradients of a network that is not in the table.
    """
    where = f"--calibration {file}"
    content = read_calibration_file(file, where)
    if content.model != model:
        raise ConfigError(
            f"{where}: made for {content.model}, the config has model.name {model}: "
            "give that model's file, or measure it by hvdtrain scaling calibrate"
        )
    profiles = []
    for entry in content.entries:
        micro_batches = entry.accumulate or accumulate
        if entry.batch % micro_batches:
            reason = f"batch {entry.batch} cannot be split into {micro_batches} micro-batches"
            raise not_a_calibration(where, reason)
        profiles.append(
            _profile(entry, micro_batches, content.groups)
            if content.groups is not None
            else _profile_without_groups(entry, micro_batches, model, group_bytes, classes)
        )
    return Calibration(profiles, f"{content.model}, {content.precision}, {content.device}")


def _times(entry: Entry, accumulate: int) -> tuple[float, float]:
    """Seconds of the update and of its last backward pass."""
    step_s = entry.batch / entry.images_per_second
    # A mean beside a median: on a machine that others use it may be the longer one.
    return step_s, min(entry.backward_s, step_s / accumulate)


def _profile(entry: Entry, accumulate: int, sizes: list[float]) -> Profile:
    step_s, backward_s = _times(entry, accumulate)
    groups = tuple(
        Group(size, min(released, backward_s))
        for size, released in zip(sizes, entry.release_s or (), strict=True)
    )
    batch = entry.batch // accumulate
    return Profile(entry.image_size, batch, step_s, backward_s, groups, accumulate)


def _profile_without_groups(
    entry: Entry, accumulate: int, model: str, group_bytes: float, classes: int
) -> Profile:
    step_s, backward_s = _times(entry, accumulate)
    profile = hand_given(
        model,
        image_size=entry.image_size,
        batch=entry.batch // accumulate,
        step_s=step_s,
        group_bytes=group_bytes,
        classes=classes,
        backward_s=backward_s,
    )
    return replace(profile, accumulate=accumulate)
