"""The DALI graphs: encoded bytes in, normalised images [N, S, S, 3] float32 out.

A graph is a plain function of named inputs, one per sample of the batch. `recipes.py` computes
them, so a graph has no randomness and no state, and its image size may change with every batch.
To add a graph, copy one, edit it, and name it in `GRAPHS`. The same graph runs on the CPU and, with
`decode="mixed"`, on the GPU; only "window" has a faster version for the CPU, in `windows.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from nvidia.dali import fn, types

Node = Any


def _vector(name: str) -> Node:
    return fn.external_source(name=name, dtype=types.INT32, ndim=1)


def _scalar(name: str) -> Node:
    return fn.external_source(name=name, dtype=types.INT32, ndim=0)


def _decode_window(decode: str) -> Node:
    """Decode only rows and columns `anchor` to `anchor + extent` [2] of the upright image."""
    encoded = fn.external_source(name="encoded", dtype=types.UINT8, ndim=1, no_copy=True)
    return fn.decoders.image_slice(
        encoded,
        device=decode,
        start=_vector("anchor"),
        shape=_vector("extent"),
        axis_names="HW",
        output_type=types.RGB,
    )


def _filter() -> Node:
    """The input `filter`, a number of `recipes.FILTERS`, as DALI's constant."""
    cubic = int(types.INTERP_CUBIC) - int(types.INTERP_LINEAR)
    number = int(types.INTERP_LINEAR) + cubic * _scalar("filter")
    return fn.cast(number, dtype=types.INTERP_TYPE)


def _normalise(images: Node, mirror: Node, mean: list[float], std: list[float]) -> Node:
    return fn.crop_mirror_normalize(
        images,
        mirror=mirror,
        dtype=types.FLOAT,
        output_layout="HWC",
        mean=[255 * m for m in mean],
        std=[255 * s for s in std],
    )


def window(decode: str, mean: list[float], std: list[float]) -> Node:
    """A window of each image, resized to `size` [2] (height, width) and mirrored if `mirror`."""
    images = fn.resize(_decode_window(decode), size=_float(_vector("size")), interp_type=_filter())
    return _normalise(images, _scalar("mirror"), mean, std)


def decoded_window(decode: str) -> tuple[Node, Node, Node, Node]:
    """The first part of `window`: windows of any size, [H, W, 3] uint8, and its other inputs."""
    return _decode_window(decode), _vector("size"), _scalar("mirror"), _scalar("filter")


def padded_crop(decode: str, mean: list[float], std: list[float]) -> Node:
    """A window resized to `size` [2], padded by reflection with `pad` [1] pixels on all sides,
    cropped to `size` again at `offset` [2] of the padded image, and mirrored if `mirror`."""
    size, pad = _vector("size"), _vector("pad")
    images = fn.resize(_decode_window(decode), size=_float(size), interp_type=_filter())
    for axis in (0, 1):
        side = size[axis : axis + 1]
        first = fn.slice(images, start=[1], shape=pad, axes=[axis])
        last = fn.slice(images, start=side - pad - 1, shape=pad, axes=[axis])
        first = fn.flip(first, horizontal=axis, vertical=1 - axis)
        last = fn.flip(last, horizontal=axis, vertical=1 - axis)
        images = fn.cat(first, images, last, axis=axis)
    images = fn.slice(images, start=_vector("offset"), shape=size, axes=[0, 1])
    return _normalise(images, _scalar("mirror"), mean, std)


def zero_padded_crop(decode: str, mean: list[float], std: list[float]) -> Node:
    """The same with black padding."""
    size = _vector("size")
    images = fn.resize(_decode_window(decode), size=_float(size), interp_type=_filter())
    images = fn.slice(
        images,
        start=_vector("offset") - _vector("pad"),
        shape=size,
        axes=[0, 1],
        out_of_bounds_policy="pad",
        fill_values=0,
    )
    return _normalise(images, _scalar("mirror"), mean, std)


def region(decode: str, mean: list[float], std: list[float]) -> Node:
    """The part of a window from `region_start` to `region_end` [2] float, in pixels of the window,
    resized to `size` [2]. Pixels outside the region are used by the interpolation filter only."""
    images = fn.resize(
        _decode_window(decode),
        size=_float(_vector("size")),
        interp_type=_filter(),
        roi_start=fn.external_source(name="region_start", dtype=types.FLOAT, ndim=1),
        roi_end=fn.external_source(name="region_end", dtype=types.FLOAT, ndim=1),
    )
    return _normalise(images, 0, mean, std)


def _float(node: Node) -> Node:
    return fn.cast(node, dtype=types.FLOAT)


GRAPHS: dict[str, Callable[[str, list[float], list[float]], Node]] = {
    "window": window,
    "padded_crop": padded_crop,
    "zero_padded_crop": zero_padded_crop,
    "region": region,
}
