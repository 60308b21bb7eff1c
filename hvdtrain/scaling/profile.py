"""Profiles: the speed of one worker and the gradients it sends, measured or estimated."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from hvdtrain.engine.gradient_groups import group_limit
from hvdtrain.errors import ConfigError
from hvdtrain.scaling.architectures import layers_of
from hvdtrain.scaling.calibration_file import Entry, not_a_calibration, read_calibration_file
from hvdtrain.scaling.ends import End, Ends
from hvdtrain.scaling.overlap import Group

BACKWARD_SHARE = 2 / 3
"""Share of the backward pass in a step, if not measured: for each multiplication of the forward pass
it does two, one for the weights of the layer and one for its inputs."""
FIXED = Ends(fast=0.05, slow=0.2)
"""Share of a measured step that does not shrink with its images: starting kernels, the optimizer, kernels that do
not fill the GPU. Fast and slow for a smaller step, and the other way round for a larger one. Source: 3 to 5 % (K80)
and 7 to 12 % (P100) in TensorFlow's benchmarks of 2017 between batch 64 and 32, 18 % (V100, fp16) in DLPerf's of
NVIDIA's TensorFlow ResNet-50 between 256 and 224."""
BY_PIXELS = 0.1
"""Error of a time that is scaled by the number of pixels, 0-1: within 2 % for ResNets from 160 to 288 px in
inference on one GPU (timm, results/, RTX 3090), 6 % from 224 to 288 px in DIUx's log."""
_FP32 = 4


@dataclass(frozen=True)
class Profile:
    """One update of one worker without communication."""

    image_size: int
    batch: int
    """Images of one micro-batch."""
    step_s: float
    """Of one update, all its micro-batches together."""
    backward_s: float
    """Of the backward pass of the last micro-batch, during which gradients are sent."""
    groups: tuple[Group, ...]
    """In order of release; sizes in fp32, times from the start of that backward pass."""
    accumulate: int = 1
    """Micro-batches of one update."""
    guessed: bool = False
    """Whether it is scaled by the number of pixels from a measurement at another image size."""
    fixed: float = 0.0
    """Share of the step that remains with however little work, 0-1."""

    def scaled(self, work: float) -> Profile:
        """This profile with `work` times the work in each micro-batch."""
        factor = self.fixed + (1 - self.fixed) * work
        groups = tuple(replace(g, release_s=g.release_s * factor) for g in self.groups)
        return replace(
            self,
            step_s=self.step_s * factor,
            backward_s=self.backward_s * factor,
            groups=groups,
            fixed=self.fixed / factor,
        )

    def with_batch(self, batch: int) -> Profile:
        """This profile with micro-batches of `batch` images; without a fixed share, at the same images/s."""
        return replace(self.scaled(batch / self.batch), batch=batch)

    def accumulated(self, micro_batches: int) -> Profile:
        """This profile with another number of micro-batches; the last one sends the gradients."""
        step_s = self.step_s * micro_batches / self.accumulate
        return replace(self, accumulate=micro_batches, step_s=step_s)

    @property
    def size_bytes(self) -> float:
        """Size of all gradients in fp32."""
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
    """The profile of a network in our table, from the seconds of one step.

    Each layer takes the share of the backward pass that it has of the multiplications, and layers
    are grouped as by the reducer. Raises ConfigError for a network that is not in the table.
    """
    seconds = step_s * BACKWARD_SHARE if backward_s is None else backward_s
    layers = layers_of(model, image_size, classes)[::-1]
    total = sum(layer.multiplications for layer in layers)
    groups: list[Group] = []
    size = done = 0.0
    matrices: list[tuple[int, int]] = []
    for layer in layers:
        size += layer.parameters * _FP32
        matrices.append(layer.matrix)
        done += layer.multiplications
        if size >= group_limit(len(groups), group_bytes) or layer is layers[-1]:
            groups.append(Group(size, seconds * done / total, tuple(matrices)))
            size, matrices = 0.0, []
    return Profile(image_size, batch, step_s, seconds, tuple(groups))


class Calibration:
    """The profiles of one model on one device."""

    def __init__(self, profiles: Sequence[Profile], about: str) -> None:
        self.profiles = tuple(profiles)
        self.about = about
        """Model, precision and device, or other words about where the profiles are from."""

    def profile(self, image_size: int, batch: int, accumulate: int, end: End) -> Profile:
        """The profile for `accumulate` micro-batches of `batch` images of `image_size`.

        It is the one nearest in image size, then batch, scaled by pixels and images. What was measured is the
        same at both ends.
        """

        def distance(p: Profile) -> tuple[float, float]:
            return abs(math.log(p.image_size / image_size)), abs(math.log(p.batch / batch))

        nearest = min(self.profiles, key=distance)
        work, guessed = batch / nearest.batch, image_size != nearest.image_size
        if guessed:
            law = 1 + BY_PIXELS if end == "slow" else 1 - BY_PIXELS
            work *= law * (image_size / nearest.image_size) ** 2
        fixed = FIXED.slow if (work < 1) == (end == "slow") else FIXED.fast
        scaled = replace(nearest, fixed=fixed).scaled(work).accumulated(accumulate)
        return replace(scaled, image_size=image_size, batch=batch, guessed=guessed)


def read_calibration(
    file: Path, model: str, *, group_bytes: float, classes: int = 1000, accumulate: int = 1
) -> Calibration:
    """The profiles in a calibration.json of `model`.

    The file of a run has no gradients: those of the network in our table are used, grouped by
    `group_bytes`. Entries without a number of micro-batches have `accumulate`.
    Raises ResourceError if the file is no calibration.json, and ConfigError if it was made for
    another model, or has no gradients and the network is not in the table.
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
            _profile(entry, micro_batches, content.groups, content.matrices)
            if content.groups is not None
            else _profile_without_groups(entry, micro_batches, model, group_bytes, classes)
        )
    return Calibration(profiles, f"{content.model}, {content.precision}, {content.device}")


def _times(entry: Entry, accumulate: int) -> tuple[float, float]:
    """Seconds of the update, and of its last backward pass."""
    step_s = entry.batch / entry.images_per_second
    # backward_s is a mean, step_s a median: on a busy machine the mean may be the longer one.
    return step_s, min(entry.backward_s, step_s / accumulate)


def _profile(
    entry: Entry,
    accumulate: int,
    sizes: list[float],
    matrices: list[list[tuple[int, int]]] | None,
) -> Profile:
    step_s, backward_s = _times(entry, accumulate)
    shapes = [None] * len(sizes) if matrices is None else [tuple(each) for each in matrices]
    groups = tuple(
        Group(size, min(released, backward_s), shape)
        for size, released, shape in zip(sizes, entry.release_s or (), shapes, strict=True)
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
