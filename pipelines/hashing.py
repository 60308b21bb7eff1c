"""Numbers that look random but are a pure function of their keys."""

from __future__ import annotations

import numpy as np

_GOLDEN = 0x9E3779B97F4A7C15
_MASK = 0xFFFFFFFFFFFFFFFF


def hash64(values: np.ndarray, *keys: int) -> np.ndarray:
    """A well-mixed 64-bit hash of each of `values` (any shape, uint64) under `keys`.

    Source: splitmix64, Steele, Lea, Flood, "Fast splittable pseudorandom number generators",
    OOPSLA 2014, with the constants of Vigna, https://prng.di.unimi.it/splitmix64.c
    """
    state = 0
    for key in keys:
        state = int(_mix(np.array([(state + key + _GOLDEN) & _MASK], dtype=np.uint64))[0])
    return _mix((values + np.uint64(1)) * np.uint64(_GOLDEN) + np.uint64(state))


def uniforms(ids: np.ndarray, draws: int, *keys: int) -> np.ndarray:
    """`draws` numbers in [0, 1) for every id: [N, draws] float64."""
    base = hash64(ids.astype(np.uint64), *keys)
    counters = np.arange(1, draws + 1, dtype=np.uint64)
    bits = _mix(base[:, None] + counters * np.uint64(_GOLDEN))
    fractions: np.ndarray = (bits >> np.uint64(11)) * 2.0**-53
    return fractions


def _mix(x: np.ndarray) -> np.ndarray:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)  # arrays wrap silently
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: np.ndarray = x ^ (x >> np.uint64(31))
    return mixed
