"""Speed of one worker alone, and the gradients it hands to the network: measured, or by hand."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hvdtrain.engine.gradient_groups import group_limit
from hvdtrain.errors import ConfigError, ResourceError
from hvdtrain.scaling.architectures import layers_of
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
    """Raises ResourceError where the file is none, and ConfigError where it is another model's.

    A run's own file does not tell the gradients: those of a known network are taken then. Entries
    that do not tell their micro-batches have `accumulate`.
    """
    where = f"--calibration {file}"
    try:
        content = json.loads(file.read_bytes())
        about = f"{content['model']}, {content['precision']}, {content['device']}"
        if content["model"] != model:
            raise ConfigError(
                f"{where}: made for {content['model']}, the config has model.name {model}: "
                "give that model's file, or measure it by hvdtrain scaling calibrate"
            )
        sizes = content.get("groups")
        profiles = [
            _profile({"accumulate": accumulate, **entry}, sizes, model, group_bytes, classes)
            for entry in content["entries"]
        ]
        if not profiles:
            raise ValueError("no entries")
    except OSError as error:
        raise ResourceError(f"{where}: cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ResourceError(
            f"{where}: expected the calibration.json of a run or of scaling calibrate, found "
            f"another file ({error!r})"
        ) from None
    return Calibration(profiles, about)


def _profile(
    entry: dict[str, Any], sizes: list[float] | None, model: str, group_bytes: float, classes: int
) -> Profile:
    image_size, accumulate = int(entry["image_size"]), int(entry["accumulate"])
    images, speed = int(entry["batch"]), float(entry["images_per_second"])
    backward_s, step_s = float(entry["backward_s"]), images / speed if speed > 0 else math.inf
    sound = image_size > 0 and accumulate > 0 and images > 0 and images % accumulate == 0
    if not (sound and 0 < speed < math.inf and 0 <= backward_s < math.inf):
        raise ValueError("a size or speed that cannot be")
    # A mean beside a median: on a machine that others use it may be the longer one.
    backward_s = min(backward_s, step_s / accumulate)
    if sizes is None:
        found = hand_given(
            model,
            image_size=image_size,
            batch=images // accumulate,
            step_s=step_s,
            group_bytes=group_bytes,
            classes=classes,
            backward_s=backward_s,
        )
        return replace(found, accumulate=accumulate)
    released = [float(seconds) for seconds in entry["release_s"]]
    if len(released) != len(sizes) or released != sorted(released):
        raise ValueError(
            f"{len(released)} times of release of {len(sizes)} groups, or not in order"
        )
    groups = tuple(
        Group(float(s), min(t, backward_s)) for s, t in zip(sizes, released, strict=True)
    )
    return Profile(image_size, images // accumulate, step_s, backward_s, groups, accumulate)
