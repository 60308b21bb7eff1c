"""Lists with commas, as the options of studies have them."""

from __future__ import annotations

import math

from hvdtrain.errors import ConfigError


def words_of(text: str, option: str, known: tuple[str, ...]) -> list[str]:
    """The words of a list with commas, each once. Raises ConfigError for one that is not `known`."""
    words = [*dict.fromkeys(text.split(","))]
    if unknown := [word for word in words if word not in known]:
        raise ConfigError(f"{option}: {unknown[0]!r}: expected some of {', '.join(known)}")
    return words


def counts_of(text: str, option: str) -> list[int]:
    """Whole numbers above 0 of a list with commas. Raises ConfigError."""
    words = [*dict.fromkeys(text.split(","))]
    if wrong := [word for word in words if not word.isdigit() or not 0 < int(word) < 2**31]:
        raise ConfigError(f"{option}: {wrong[0]!r}: expected whole numbers such as 32,64")
    return [int(word) for word in words]


def rates_of(text: str) -> list[float]:
    """The learning rates of a list with commas. Raises ConfigError."""
    words = [*dict.fromkeys(text.split(","))]
    found: list[float] = []
    for word in words:
        try:
            found.append(float(word))
        except ValueError:
            found.append(0.0)
        if not 0 < found[-1] < math.inf:
            raise ConfigError(f"--rates: {word!r}: expected numbers above 0 such as 0.01,0.02")
    return found
